# Imports.
# expect: AC
# limits: cpu_s=5

import array, bisect, cmath, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, math, operator, queue, random, re, statistics, string, struct, sys, time, typing, zlib, hashlib, json, textwrap, calendar, contextlib, enum
print("held")
