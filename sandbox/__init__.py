"""Will run programs that a model wrote, and judge them. Imports nothing of the other packages. Not built yet."""
