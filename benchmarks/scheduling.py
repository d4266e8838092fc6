"""Each study's published-size grid on 1 to 1,024 workers, planned from the measured speeds of the archive's runs.

Nothing is trained: a run's seconds are its floating-point operations over the median speed of the archive's runs of its
network on the device; each worker takes the next run of the list as it becomes free, runs with a parent when all others have ended.
"""

from __future__ import annotations

import _table

WORKERS = (1, 4, 16, 64, 256, 1024)
NOTE = """{study}: hours of `rwc sweep {study} --profile paper` until its last run ends, {runs} runs of {hours:,.0f} worker-hours in all
(operations over the speed of the archive's runs, most of them of narrower networks), on workers like those that trained these
({device}; one thread each on a CPU). efficiency: share of the workers' time that is spent training; a run is not divided, so
the longest ({longest:.1f} hours) is the least the grid can take. priority seeds: every model and data set gets its first seed
before any gets its second; longest: and the longest first. Runs of other than 32 pixels are left out: the archive says nothing
of their speed."""


def main() -> None:
    args = _table.options(__doc__)
    from rwclib import archive, studies
    from rwclib.sweeps import forecast as planning

    speeds, rows, notes = planning.rates(archive.default_results()), [], []
    evidence = _table.environment("none: a simulation")
    for study in studies.STUDIES:
        grid = [run for run in studies.get(study).runs("smoke" if args.quick else "paper") if run.image_size == 32]
        if not grid:  # judged on another study's runs
            continue
        for device in sorted({kind[0] for kind in speeds}):
            total = sum(planning.seconds(config, speeds, device) for config in grid) / 3600
            for workers in WORKERS:
                row = {"study": study, "device": device, "workers": workers}
                for priority in ("seeds", "longest"):
                    hours = {
                        run: planning.seconds(run, speeds, device) / 3600 for run in planning.order(grid, priority)
                    }
                    row[f"hours_{priority}"] = span = planning.span(hours, workers)
                    row[f"efficiency_{priority}"] = total / (workers * span)
                rows.append(row)
            notes.append(
                NOTE.format(
                    study=study, runs=len(grid), hours=total, device=device, longest=max(hours.values(), default=0.0)
                )
            )
    _table.report(rows, evidence, "\n\n".join(notes), args.json)


if __name__ == "__main__":
    main()
