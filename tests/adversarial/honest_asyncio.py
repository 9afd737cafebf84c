# Asyncio.
# expect: AC

import asyncio
async def main():
    await asyncio.sleep(0)
    print("held")
try:
    asyncio.run(main())
except PermissionError:
    print("held")  # an event loop wants a socket pair, which nobody gets here
