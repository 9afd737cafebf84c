# Constants to be folded into gigabytes.
# expect: RE|MLE|WA|TLE
# source: 'x = ((((0,) * 100) * 100) * 100) * 1000 * 1000 * 1000'
