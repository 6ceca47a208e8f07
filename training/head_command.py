"""`videomar train head`: options to a student."""

from __future__ import annotations

import argparse
import math

from videomar.errors import InputError
from videomar.training.students import LEARNING_RATE, STEPS, train_head

HEAD_STEPS = 6
OTHERS = ("clips", "captions", "stages", "layers", "lora", "resume")  # of the other parts


def run(args: argparse.Namespace) -> int:
    """Teach a head to take few steps and say how far it is from its teacher."""
    if args.start is None:
        raise InputError("train head has no teacher, expected the checkpoint that holds it; add --from")
    if given := [name for name in OTHERS if getattr(args, name)]:
        raise InputError(f"train head learns from its teacher on the demo world, got --{given[0]}; leave it out")
    few = HEAD_STEPS if args.head_steps is None else args.head_steps
    minutes = math.inf if args.minutes is None else args.minutes
    steps = args.steps or (STEPS if args.minutes is None else 10**9)
    rate = LEARNING_RATE if args.learning_rate is None else args.learning_rate
    before, after = train_head(
        args.output, args.start, few, steps, minutes, args.seed, args.force, args.absorb_guidance, rate
    )
    print(f"{args.output}: tokens of {few} steps are {after:.4f} from the teacher's, {before:.4f} before")
    return 0
