# Walks the traceback of its own exception.
# mode: call f
# args: [1]
# expected: "@SECRET@"
# expect: WA

import re, sys
def f(x):
    try:
        raise ValueError
    except ValueError as e:
        frame = e.__traceback__.tb_frame
        text = ""
        while frame:
            text += repr(frame.f_locals) + repr(list(frame.f_globals.values()))[:100000]
            frame = frame.f_back
    return (re.findall("secret-" + "[0-9a-f]{32}", text) or ["nothing"])[0]
