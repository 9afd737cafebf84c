# Event loops of every kind: waiting, threads, the old interface.
# expect: AC

import asyncio
async def add(queue, found):
    found.append(await queue.get())
async def main():
    queue, found = asyncio.Queue(), []
    for x in range(4):
        await queue.put(x)
    await asyncio.gather(*(add(queue, found) for _ in range(4)))
    await asyncio.sleep(0.01)
    found.append(await asyncio.to_thread(sum, [1, 2]))
    return found
assert asyncio.run(main()) == [0, 1, 2, 3, 3]
loop = asyncio.new_event_loop()
print("held" if loop.run_until_complete(main()) else "?")
loop.close()
