"""A seeded fault simulator: the real engine against copies in memory, a fence with QEMU's semantics, and guests.

    python -m tests.sim --seed 17 --mode A       replays one seed
    python -m tests.sim --seeds 10000            runs many, in every mode

Everything happens on one thread and in virtual time, and follows from one integer. Each call of the engine, to a port
or a reader, lets the rest of the world move: writes of guests reach the copies piece by piece and in any order, guests
read through the fence, sectors rot, the engine is killed.

    mode A   faults leave every sector a majority of current copies: all must be found once, and healed
    mode B   some sectors have none: they must be reported and never written, everything else as in mode A
    mode C   a scrub that only reports: it must find the same and write nothing
"""
