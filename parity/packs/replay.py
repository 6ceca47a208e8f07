"""`videomar replay`: prove on the device, without PyTorch or the checkpoint, that engines make what was recorded.

Graph by graph on recorded inputs, then the whole ladder against the recorded clip. Knows the order of things.
"""

from __future__ import annotations

import argparse

from videomar.console import log
from videomar.errors import InputError
from videomar.graphs import GRAPHS
from videomar.parity.comparing.compare import check_outputs, climb_all, labelled, write
from videomar.parity.comparing.figures import Series, Spot
from videomar.parity.comparing.results import as_data
from videomar.parity.comparing.verdict import Finding, judge
from videomar.parity.environment import environment
from videomar.parity.measures import compare_arrays
from videomar.parity.packs.pack import Pack
from videomar.parity.packs.tee import portable_run
from videomar.parity.subject import Subject, open_subject, require_comparable
from videomar.progress import Progress
from videomar.tolerances import Gate


def run(args: argparse.Namespace) -> int:
    """Replay a pack; 0 when every gate passed, 1 when one was missed."""
    check_outputs([args.json, args.html, args.png])
    pack = Pack.read(args.pack)
    with open_subject(args.directory, args.threads, args.backend) as side:
        if side.manifest is None:
            raise InputError(f"{side.directory} is a checkpoint, expected engines or artifacts; give those")
        log.info(f"{side.directory}: {side.why}")
        reference, others, case = pack.subject(), labelled([side]), pack.case()
        require_comparable([reference, side])
        if not (side.tokenizer(case.prompt) == pack.arrays["ids"]).all():
            raise InputError(
                f"{side.directory} reads {case.prompt!r} as other ids than {pack.directory}; replay what was made "
                "from the checkpoint that was recorded"
            )
        found = replay_graphs(pack, side)
        ladder = climb_all(reference, others, [case], pack.sampling)
        (label,) = others
        verdict = judge(ladder, label, (reference.precision, side.precision), found)
        data = as_data(reference, others, [case], pack.sampling, ladder, [verdict], environment(), bisect=False)
    return write(data, ladder, args, {})


def replay_graphs(pack: Pack, side: Subject) -> list[Finding]:
    """Every recorded call, one gate a graph: the worst of its outputs. Graphs that a backend lacks are not judged."""
    assert side.manifest is not None
    run_graph, findings = portable_run(side.backend, side.manifest), []
    with Progress() as progress:
        for done, graph in enumerate(graph for graph in GRAPHS if graph in pack.graphs):
            progress.at(graph, done, len(pack.graphs))
            gate = Gate(graph, "relative_l2", pack.tolerance(side.precision, graph))
            if not side.backend.has_graph(graph):  # type: ignore[attr-defined]
                findings.append(Finding(gate, None, None, None, "not in this directory"))
                continue
            worst = Series()
            for index, (feeds, expected) in enumerate(pack.calls(graph)):
                made = run_graph(graph, feeds)
                for name, value in expected.items():
                    got = made.get(name)
                    if got is None or got.shape != value.shape:
                        shape = "missing" if got is None else str(list(got.shape))
                        raise InputError(
                            f"{side.directory}: output {name!r} of {graph} is {shape}, expected {list(value.shape)}; "
                            "record a pack of this export"
                        )
                    worst.add(compare_arrays(got, value), Spot(f"call {index}, {name}"))
            stat = worst.stats["relative_l2"]
            findings.append(Finding(gate, stat.worst, gate.passes(stat.worst), stat.where))
    return findings
