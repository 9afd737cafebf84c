# Makes the runner itself say what it likes.
# expect: WA|RE|BAD_RESULT|ILE

import sys
runner = sys.modules["sandbox.worker.runner"]
runner._settle = lambda: True
runner._answer = lambda kind, text, dirty: runner.os.write(3, b"kc" + bytes(2))
raise ValueError("not counted?")
