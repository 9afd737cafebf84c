# A class with a method, as LeetCode has it.
# mode: call Solution().add
# args: [[1, 2], 3]
# expected: [4, 5]
# expect: AC

from typing import List
class Solution:
    def add(self, nums: List[int], k: int) -> List[int]:
        return [n + k for n in nums]
