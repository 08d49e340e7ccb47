"""What a scrub costs beside other ways of reading all copies: `make bench`, or `python -m tests.bench --help`.

measure.py      processes, their time on the wall and on processors; samples, rows, medians
bed.py          a set to measure on, in memory or on disk
peers.py        QEMU's own vote, in daemons of their own over the same images
scrubber.py     one scrub in a process of its own, which says what it took
guest.py        a load generator, the only one: figures of two runs can be compared
contenders.py   everybody who reads all of three copies; each is checked to have done so
situations.py   damage, sparse sets, five copies, commands, confirmation, guests, rejoin
table.py        targets, tables, docs/performance.md
front.py        a front against NBD, by hand
"""
