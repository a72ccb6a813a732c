"""How long a single vector is under way at least under one program, and how long SMs take to send many off."""

from __future__ import annotations

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.families import SmCosts
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.state import State


class Ways:
    """Least times of single vectors under one program, picoseconds.

    Attributes:
        hop_ps: Of a hop, in whole quanta, to which deliveries are rounded down.
        out_ps, home_ps: A dispatched vector and a partial sum keep the planes of a link busy.
        dispatch_delay_ps, combine_delay_ps: From when an SM takes a vector to when it, or what asks for it, departs.
        asked_ps: From then to when a dispatched vector enters its home's uplink; 0 where it is stored.
        dispatch_trip_ps: From when a dispatched vector, or what asks for it, departs to when its SM may take another.
        seen_ps: From when it has come to when experts see it.
        arrival_ps, local_ps: From the opening of dispatch to when experts see a token of another GPU, or of their own.
        sum_asked_ps: From when a sum may be combined to when a partial sum enters an uplink.
        summed_ps: From when the last partial sum of a token has left its uplink to when the token is home.
        combined_ps: From when a sum may be combined to when the token is home.
        sum_trip_ps: From when a sum departs to when its SM may take another.
        remote_ps: From the end of a row with a token of another GPU to when that is home.
    """

    def __init__(self, state: State, costs: Costs, program: Program) -> None:
        """Works out the ways of a program's primitives from a state that has not begun."""
        root = state.root[0]
        self.hop_ps = costs.hop_ps // costs.quantum_ps * costs.quantum_ps
        dispatch, combine, memory_ps = program.dispatch, program.combine, costs.memory_ps
        self.out_ps = self._spread_ps(costs, costs.dispatch_flits(int(dispatch.names_targets)), costs.dispatch_segments)
        self.home_ps = self._spread_ps(costs, costs.combine_flits(), costs.combine_segments)
        # Only the first of a token's vectors bears the work on the token itself, so all do where there is one of them.
        sends_one, asks_one = dispatch.in_switch and not dispatch.by_team, combine.reads and combine.in_switch
        self.dispatch_delay_ps = costs.dispatch_sm.delay_ps(costs.dispatch_sm.token_ps * sends_one)
        self.combine_delay_ps = costs.combine_sm.delay_ps(costs.combine_sm.token_ps * asks_one)

        self.asked_ps = self._asked_ps(costs, int(root["dispatch_ask_flits"]), 1) if dispatch.reads else 0
        # A first look into the AL TLB misses; packets behind the first pass it meanwhile.
        self.seen_ps = memory_ps if dispatch.names_targets and costs.dispatch_segments == 1 else 0
        self.arrival_ps = self.dispatch_delay_ps + self.asked_ps + 2 * self.hop_ps + self.out_ps + self.seen_ps
        self.dispatch_trip_ps = self.asked_ps + self.out_ps + (2 if dispatch.reads else 4) * self.hop_ps
        self.local_ps = self.arrival_ps if program.loopback else memory_ps

        self.sum_asked_ps = self.combine_delay_ps
        if combine.reads:
            asks = int(state.ask_flits[int(combine.names_targets)])
            self.sum_asked_ps += self._asked_ps(costs, asks, costs.combine_segments)
        if combine.names_targets and not dispatch.names_targets:
            self.sum_asked_ps += memory_ps  # dispatch has not looked there before
        reduced_ps = self.home_ps * 10**6 // costs.reduction_ppm - 1 if combine.in_switch else 0
        self.summed_ps = 2 * self.hop_ps + costs.cycle_ps * combine.in_switch
        self.combined_ps = self.sum_asked_ps + self.summed_ps + max(self.home_ps, reduced_ps)
        self.sum_trip_ps = self.combined_ps - self.combine_delay_ps
        if not combine.reads:
            # The switch says so at once, or the home GPU when all has come.
            self.sum_trip_ps += -costs.cycle_ps if combine.in_switch else 2 * self.hop_ps
        self.remote_ps = self.combined_ps + 2 * self.hop_ps * program.notifies

    def _asked_ps(self, costs: Costs, flits: int, segments: int) -> int:
        return self._spread_ps(costs, flits * segments, segments) + 2 * self.hop_ps + costs.memory_ps

    @staticmethod
    def _spread_ps(costs: Costs, flits: int, segments: int) -> int:
        """Returns the least time that flits need on all planes together; each segment is rounded down on its own."""
        lost_ps = segments * costs.quantum_ps if costs.resolution == "packet" else 0
        return max(0, costs.spread_ps(flits) - lost_ps)


def taken_ps(count: int, sms: int, sm: SmCosts, delay_ps: int, trip_ps: int) -> int:
    """Returns how long SMs take at least until the last of so many vectors departs.

    A vector takes a place of an SM for its delay and its trip. Those in the last places had the delay at least.
    """
    places = sms * sm.slots
    waiting = max(0, count - places)
    return (waiting * (delay_ps + trip_ps) + min(count, places) * delay_ps) // max(places, 1)
