"""Chunk resolution: the vectors of a token chunk for one destination as one segment, a *bundle*.

A bundle is the node of its *carrier*, the first of its pairs or tokens, whose flits are those of all of them; the
others hang on the carrier in a list. Four rules keep it close to the vectors it stands for:

- It has arrived when its last vector has.
- A group has one window for all its SMs, counted in vectors. A bundle goes when at least half of it fits, and is cut to
  a window. Its room falls free when its first vector has made the round trip: the others follow at link rate, and so do
  those that take their places.
- A switch output is busy with what a bundle weighs there, although the head may come long before the rest.
- A reduction unit keeps slots for one vector: all contributions stream through it in one order. Sums that are pushed
  have no common order, so these go vector by vector.

``bundles`` holds lists that are filled pair by pair: (gpu, destination) of the chunk that a GPU dispatches, then (gpu,
source) of what a GPU reads, then two rows of one for each GPU for use inside a function.
"""

from __future__ import annotations

from typing import Any

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.groups import mark_dirty
from dysharp_env.simulator.layout import COMBINE, DISPATCH, EV_SLOT, NOTHING
from dysharp_env.simulator.primitives import is_pull
from dysharp_env.simulator.staffing import shrink_windows
from dysharp_env.simulator.views import Root, bundles, gpus, nodes, trip_of

# A bundle of sums asked for together is at most this share of a window: with fewer on their way, requests, partial sums
# and the unit that adds them would wait for each other.
SUM_SHARE = 4


@compiled
def read_bundle(s: Root, gpu: int, source: int) -> int:
    """Returns the bundle of partial sums that a GPU reads from another one."""
    return (s.num_gpus + gpu) * s.num_gpus + source


@compiled
def passing_bundle(s: Root, gpu: int) -> int:
    """Returns a bundle of one GPU that is filled and emptied inside a function."""
    return 2 * s.num_gpus * s.num_gpus + gpu


@compiled
def gather(s: Root, bundle: int, pair: int, links: Any) -> None:
    """Adds a pair to a bundle."""
    b = bundles(s)[bundle]
    links[pair] = NOTHING
    if b.head == NOTHING:
        b.head = pair
        b.count = 1
    else:
        links[b.tail] = pair
        b.count += 1
    b.tail = pair


@compiled
def seal(s: Root, bundle: int, most: int, base: int, links: Any) -> int:
    """Cuts at most so many pairs off a bundle's head, and returns the first; its node, from ``base`` on, weighs all."""
    b = bundles(s)[bundle]
    carrier = b.head
    x = nodes(s)[base + carrier]
    count = min(b.count, most)
    last = carrier
    for _ in range(count - 1):
        last = links[last]
        x.flits += nodes(s)[base + last].flits
        x.payload_flits += nodes(s)[base + last].payload_flits
    b.head = links[last]
    b.count -= count
    links[last] = NOTHING
    return carrier


@compiled
def dispatch_window(s: Root, gpu: int) -> int:
    """Returns the vectors that a dispatch group may have in flight; an SM needs a token to be at."""
    num_sms = min(gpus(s)[gpu].dispatch_sms, gpus(s)[gpu].dispatch_here)
    return min(num_sms, max(s.sends_per_gpu // s.num_parts, 1)) * s.dispatch_slots


@compiled
def combine_window(s: Root, gpu: int) -> int:
    """Returns the vectors that a combine group may have in flight; an SM that reads needs a token to be at."""
    num_sms = min(gpus(s)[gpu].combine_sms, gpus(s)[gpu].combine_here)
    return (min(num_sms, s.tokens_per_gpu) if is_pull(s) else num_sms) * s.combine_slots


@compiled
def fits(vectors: int, window: int, held: int) -> bool:
    """Returns whether at least half of a bundle fits a group's window."""
    return 2 * (window - held) >= vectors


@compiled
def begin_bundle(s: Root, gpu: int, combines: bool, node: int, vectors: int) -> None:
    """Counts a bundle that a group puts in flight."""
    g = gpus(s)[gpu]
    if combines:
        g.take_held += vectors
        g.combine_in_flight += vectors
    else:
        g.send_held += vectors
        g.dispatch_in_flight += vectors
    trip_of(s, node).issued_ps = s.now_ps
    trip_of(s, node).segments_out = vectors


@compiled
def free_early(s: Root, gpu: int, combines: bool, node: int, home_ps: int, lead_ps: int) -> None:
    """Frees a bundle's room in its group's window.

    Args:
        s: The root.
        gpu: The GPU of the group.
        combines: Whether that is the combine group.
        node: The bundle.
        home_ps: When its last vector will have made the round trip.
        lead_ps: By how much all its vectors together take longer than the first.
    """
    x = trip_of(s, node)
    vectors = x.segments_out
    freed_ps = max(s.now_ps, home_ps - lead_ps // vectors * (vectors - 1))
    hold = s.combine_hold if combines else s.dispatch_hold
    freed_ps += (freed_ps - x.issued_ps) // 1000 * hold
    push(s, freed_ps, EV_SLOT, gpu * 2 + (1 if combines else 0), vectors)


@compiled
def free_room(s: Root, gpu: int, combines: bool, vectors: int) -> None:
    """Gives a group the room of a bundle back."""
    if combines:
        gpus(s)[gpu].take_held -= vectors
        mark_dirty(s, COMBINE, gpu)
    else:
        gpus(s)[gpu].send_held -= vectors
        mark_dirty(s, DISPATCH, gpu)
    if s.split_moments > 0:
        shrink_windows(s, gpu)
