# A failing exit code after the right answer.
# expect: RE

print("held")
raise SystemExit(1)
