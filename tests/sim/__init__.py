"""A seeded fault simulator: the real engine against copies in memory, a fence with QEMU's semantics, and guests.

    python -m tests.sim --seed 17        replays one run
    python -m tests.sim --seeds 10000    makes many, each from a seed of its own

Everything happens on one thread and in virtual time, and follows from one integer. Each call of the engine, to a port
or a reader, lets the rest of the world move: writes of guests reach the copies piece by piece, guests read through the
fence, sectors rot, copies hang, misread, lose their caches and miss writes, the engine is killed, paused, told that a
copy does not count any more. The seed also chooses the mode:

    mode A   faults leave every sector a majority of current copies: all must be found once, and healed
    mode B   some sectors have none: they must be reported and never written, everything else as in mode A
    mode C   a scrub that only reports: it must find the same and write nothing

`truth.py` knows what is so, `world.py` moves it, `ports.py` serves it to the engine, `run.py` holds the engine to it.
"""
