"""What the valid rows amount to, counted as they pass, in bounded memory."""

from collections import Counter

from .rows import Row

# More orders of roles than this are folded into sums.
_MAX_ORDERS = 10_000
_MAX_ORDER_LENGTH = 256


class Histogram:
    """Counts whole numbers in bins of `width`; percentiles are exact for a width of 1."""

    def __init__(self, width: int = 1):
        self.width = width
        self.bins: Counter[int] = Counter()
        self.number = 0
        self.total = 0
        self.maximum = 0

    def add(self, value: int, times: int = 1) -> None:
        """Count `value`, as often as `times` says."""
        self.bins[value // self.width] += times
        self.number += times
        self.total += value * times
        if value > self.maximum:
            self.maximum = value

    @property
    def mean(self) -> float:
        """The mean of what was counted; 0 for nothing."""
        return self.total / self.number if self.number else 0.0

    def percentile(self, percent: float) -> int:
        """Return the smallest value that `percent` of what was counted does not exceed; for wide bins, their middle."""
        due = self.number * percent / 100
        passed = 0
        for number, count in sorted(self.bins.items()):
            passed += count
            if passed >= due:
                return min(number * self.width + self.width // 2, self.maximum)
        return 0


class Counts:
    """Rows, turns, roles and characters of valid rows."""

    def __init__(self) -> None:
        self.characters = Histogram(16)
        self.with_tools = 0
        self.with_reasoning = 0
        # Most files have few orders of roles, so that one count a row gives turns and roles.
        self._orders: Counter[tuple[str, ...]] = Counter()
        self._turns = Histogram()
        self._roles: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a row."""
        messages = row.messages
        roles = tuple([message["role"] for message in messages])
        num_characters = sum([len(message["content"]) for message in messages])
        if max(map(len, messages)) > 2:
            reasoning = [message["reasoning_content"] for message in messages if "reasoning_content" in message]
            num_characters += sum(map(len, reasoning))
            self.with_reasoning += bool(reasoning)
        self._orders[roles] += 1
        self.characters.add(num_characters)
        self.with_tools += row.tools is not None or "tool" in roles
        if len(self._orders) > _MAX_ORDERS or len(roles) > _MAX_ORDER_LENGTH:
            self._fold()

    @property
    def rows(self) -> int:
        """Number of valid rows."""
        return self.characters.number

    @property
    def turns(self) -> Histogram:
        """Messages a row."""
        self._fold()
        return self._turns

    @property
    def roles(self) -> Counter[str]:
        """Messages of each role."""
        self._fold()
        return self._roles

    def _fold(self) -> None:
        for order, number in self._orders.items():
            self._turns.add(len(order), number)
            for role in order:
                self._roles[role] += number
        self._orders.clear()
