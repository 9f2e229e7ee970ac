"""Text of an answer up to where a client wants it to end."""

from collections.abc import Callable, Sequence


class UntilStop:
    """A listener that hands pieces of a text on up to the stop that is whole first in it, and nothing of that.

    What may be the beginning of a stop is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str], say: Callable[[str], None]):
        self.stops, self.say = stops, say
        self.held, self.found = "", False

    def put(self, piece: str) -> None:
        if self.found:
            return
        text = self.held + piece
        # The stop that is whole first, so that it is the same however the text is cut into pieces.
        places = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        self.found = bool(places)
        sure = min(places)[1] if places else len(text) - self._possible(text)
        self.held = "" if places else text[sure:]
        if sure:
            self.say(text[:sure])

    def end(self) -> None:
        if self.held:
            self.say(self.held)
        self.held = ""

    def _possible(self, text: str) -> int:
        """Count the last characters that may begin a stop."""
        longest = max(map(len, self.stops), default=1) - 1
        return next(
            (
                length
                for length in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-length:]) for stop in self.stops)
            ),
            0,
        )
