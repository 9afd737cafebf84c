# An exception that claims to be a clean exit.
# expect: WA

class Fine(SystemExit):
    code = 0
raise Fine("passed")
