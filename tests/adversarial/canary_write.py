# A folder outside that anybody may write.
# expect: AC

try:
    open("@CANARY_DIR@/planted", "w").write("x")
    print("ESCAPED")
except OSError:
    print("held")
