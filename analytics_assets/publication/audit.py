"""What a reader of everything that is published can know, by the closed form of `fives`."""

from __future__ import annotations

from analytics_assets.publication.fives import possible_values
from analytics_assets.store import Store
from analytics_assets.store.published import GRAINS, read_steps, read_stretches


def find_recoverable(store: Store) -> list[str]:
    """List the series of which a day or week keeps fewer possible values than the base, as numbers of them.

    A series without a step has 0 to base - 1 on each day, and is not looked at.

    Raises:
        DatabaseError: the database is out of reach.
    """
    found = []
    with store.transaction("reading what is published") as connection:
        for grain in GRAINS:
            stretches = read_stretches(connection, grain)
            for (name, _), steps in read_steps(connection, grain).items():
                few = 0
                for stretch in stretches:
                    if stretch.event_name == name:
                        known = [steps.get(day, 0) if there else None for day, there in stretch.collected.items()]
                        values = possible_values(known, base=stretch.base)
                        few += sum(bounds is not None and bounds.size < stretch.base for bounds in values)
                if few:
                    found.append(f"{grain.counts}: a series of {name} with {few} {grain.unit}s that can be worked out")
    return found
