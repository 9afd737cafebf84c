# A chain of attributes.
# expect: CE|RE
# source: 'a' + '.a' * 50000
