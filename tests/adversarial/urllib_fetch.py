# Asks the web.
# expect: AC

import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:@PORT@/", timeout=2)
    print("ESCAPED")
except OSError:
    print("held")
