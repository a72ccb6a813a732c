"""First-in first-out lists: two ends in a record, and links in the ``next`` fields of what is in it."""

from __future__ import annotations

from typing import Any

from dysharp_env.simulator.jit.compiled import compiled_in_place
from dysharp_env.simulator.state.codes import NOTHING

# A record with ``head`` and ``tail``, and rows of records with ``next``.
Fifo = Any
Links = Any


@compiled_in_place
def append(fifo: Fifo, links: Links, item: int) -> None:
    """Puts an item behind the others."""
    links[item].next = NOTHING
    if fifo.head == NOTHING:
        fifo.head = item
    else:
        links[fifo.tail].next = item
    fifo.tail = item


@compiled_in_place
def take(fifo: Fifo, links: Links) -> int:
    """Removes and returns the first item, of which there must be one."""
    item = fifo.head
    fifo.head = links[item].next
    return item


@compiled_in_place
def append_both_ways(fifo: Fifo, links: Links, item: int) -> None:
    """Puts an item behind the others of a list that is linked backwards too."""
    links[item].prev = fifo.tail
    append(fifo, links, item)


@compiled_in_place
def prepend_both_ways(fifo: Fifo, links: Links, item: int) -> None:
    """Puts an item before the others of a list that is linked backwards too."""
    links[item].prev = NOTHING
    links[item].next = fifo.head
    if fifo.head == NOTHING:
        fifo.tail = item
    else:
        links[fifo.head].prev = item
    fifo.head = item


@compiled_in_place
def remove(fifo: Fifo, links: Links, item: int) -> None:
    """Takes an item out of a list that is linked both ways, wherever it is."""
    x = links[item]
    if x.prev == NOTHING:
        fifo.head = x.next
    else:
        links[x.prev].next = x.next
    if x.next == NOTHING:
        fifo.tail = x.prev
    else:
        links[x.next].prev = x.prev


@compiled_in_place
def join(fifo: Fifo, links: Links, other: Fifo) -> None:
    """Moves all items of another list, which has some, behind the others of this one."""
    if fifo.head == NOTHING:
        fifo.head = other.head
    else:
        links[fifo.tail].next = other.head
    fifo.tail = other.tail
    other.head = NOTHING
    other.tail = NOTHING
