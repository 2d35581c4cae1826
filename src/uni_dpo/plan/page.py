"""An estimate as lines for the terminal."""

from uni_dpo.plan.estimate import Estimate

GIB = 2**30


def lines(found: Estimate, gpu: str, gpus: int) -> list[str]:
    """Return what an estimate says, part by part."""
    shown = _parts(found, gpu, gpus)
    width = max(len(name) for _, rows in shown for name, _ in rows)
    return [line for title, rows in shown for line in (title, *(f"  {name:{width}}  {value}" for name, value in rows))]


def _parts(found: Estimate, gpu: str, gpus: int) -> list[tuple[str, list[tuple[str, str]]]]:
    work = found.workload
    data = [
        ("questions, pairs", f"{work.questions:,}, {work.pairs:,}"),
        ("prompt, of it image tokens", f"{work.prompt:,.0f}, {work.image:,.0f}"),
        ("answers per question, tokens each", f"{work.answers:.1f}, {work.answer:,.0f}"),
        (
            "tokens counted by",
            "the tokenizer" if work.counted else "characters ÷ 3.5, since there is no tokenizer.json",
        ),
    ]
    memory = [(part, f"{size / GIB:.2f} GiB") for part, size in found.memory.items() if size]
    memory += [
        ("in all, with waste", f"{found.total / GIB:.1f} GiB"),
        (f"on {gpu}", f"{found.room / GIB:.0f} GiB: {'fits' if found.fits else 'does not fit'}"),
        ("largest batch per device", f"{found.largest_batch:,} pairs" if found.largest_batch else "none"),
    ]
    longest, likely, shortest = found.hours
    work_rows = [
        ("steps", f"{found.steps:,}"),
        ("tokens", f"{found.tokens:.3g}"),
        ("operations", f"{found.flops:.3g} FLOP"),
        (f"hours on {gpus} × {gpu}", f"{likely:.3g} ({shortest:.3g} … {longest:.3g}, at 50 … 25 % of its products)"),
    ]
    disk = [(part, f"{size / GIB:.2f} GiB") for part, size in found.disk.items()]
    shown = [("Data", data), ("Memory per device", memory), ("Work", work_rows), ("Disk", disk)]
    if found.advice:
        shown.append(
            ("To make it fit", [(line.partition(" → ")[0], line.partition(" → ")[2]) for line in found.advice])
        )
    return shown
