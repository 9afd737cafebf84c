# Ten million elements.
# mode: call f
# args: [1]
# expected: [1]
# expect: OLE|WA|TLE|MLE
# limits: cpu_s=4

def f(x):
    return [0] * 10_000_000
