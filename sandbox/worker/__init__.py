"""What runs on the far side: the trusted worker and, below it, the program. Standard library only.

The files in order of trust and of time:

    __main__.py    starts server.py without importing the rest of the package
    server.py      W, one per slot: takes jobs from the owner, relays frames, keeps the watch
    zygote.py      Z: sits in the jail with the modules imported, forks one supervisor per program
    supervisor.py  P: holds one program's source and inputs, forks a runner per test, measures and kills it
    runner.py      T: locked down for good, runs the program

W, Z, P and T are processes. Z never sees a program and T never sees an expected output: no expected output ever
crosses the channel.
"""
