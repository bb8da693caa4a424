"""Every error that this package raises on purpose. What a caller may retry is a type, not a message.

    FeatureStoreError
    ├── TerminalError                    a retry cannot help: mend the input, the declaration or the configuration
    │   ├── ConfigurationError           a setting is missing, malformed or contradictory
    │   ├── DeclarationError             a declaration contradicts itself or another one (ValueError)
    │   ├── UnknownNameError             no view, feature, service, dataset or symbol has this name (KeyError)
    │   ├── MalformedDataError           a file, payload or frame does not have the declared form: refused whole (ValueError)
    │   ├── PartitionBlockedError        the audit refused a partition: nothing was published
    │   ├── UnknownPartitionError        the key is not a session of the calendar (ValueError)
    │   ├── PointInTimeViolation         an answer would have held a value from the future (ValueError)
    │   ├── NotOnlineError               the view or service is for training only
    │   ├── NullFeaturesError            a vector without NULL was asked for, and features are NULL (ValueError)
    │   ├── InsufficientCoverageError    fewer values than the caller demands are there
    │   ├── RefusedError                 a dangerous request was not confirmed, or the request asks too much
    │   └── SourceRefusedError           a provider understood the request and will not answer it
    │       └── SymbolNotFoundError      a provider does not know the symbol: delisted, renamed, or never its own
    └── TransientError                   the same call may succeed later: retried with back-off
        ├── StoreUnavailableError        Postgres or Redis did not answer
        │   └── NoTierAnsweredError      none of the stores that a read was asked of
        └── SourceUnavailableError       a provider did not answer

Nothing else belongs here: no handling, no formatting.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

NAMED = 10
"""A message names no more missing features than this."""

LONGEST_NAME = 200
"""Of an unknown name a message tells no more characters, and no more are compared with the known ones."""


class FeatureStoreError(Exception):
    """Root of all deliberate errors."""


class TerminalError(FeatureStoreError):
    """A retry cannot help."""


class TransientError(FeatureStoreError):
    """The same call may succeed later."""


class ConfigurationError(TerminalError):
    """A setting is missing, malformed or contradicts another."""


class DeclarationError(TerminalError, ValueError):
    """A declaration contradicts itself or another one; the message names it."""


class UnknownNameError(TerminalError, KeyError):
    """No declaration has this name; the message lists the nearest valid ones.

    Args:
        kind: What was looked up, for example "feature view".
        name: The name that was not found.
        known: All valid names.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Build the message from the nearest known names."""
        choices = sorted(known)
        name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        nearest = difflib.get_close_matches(name, choices, n=3, cutoff=0.4) or choices[:10]
        self.message = f"unknown {kind} {name!r}; nearest: {', '.join(nearest) or 'none is declared'}"
        super().__init__(self.message)

    def __str__(self) -> str:
        """The message without KeyError's quotes."""
        return self.message


class MalformedDataError(TerminalError, ValueError):
    """A file, payload or frame does not have the declared form; nothing of it was taken."""


class PartitionBlockedError(TerminalError):
    """The audit refused a partition; what was published before stays."""


class UnknownPartitionError(TerminalError, ValueError):
    """The key is not a session of the dataset's calendar."""


class PointInTimeViolation(TerminalError, ValueError):  # noqa: N818 - the field's term, part of the public API
    """An answer would have held a value that was not known at the requested time."""


class NotOnlineError(TerminalError):
    """The view or service is for training only: the online store never holds its values."""


class NullFeaturesError(TerminalError, ValueError):
    """A vector without NULL was asked for.

    Args:
        service: The vector's service.
        missing: `view:feature` of each NULL, in the vector's order, with the reason.
    """

    def __init__(self, service: str, missing: Mapping[str, str]) -> None:
        """Name every NULL."""
        self.features = tuple(missing)
        reasons = ", ".join(f"{name} ({reason})" for name, reason in missing.items())
        super().__init__(f"{service}: {len(missing)} features are NULL: {reasons}; pass allow_null=True to take the vector as it is")


class InsufficientCoverageError(TerminalError):
    """An answer has fewer values than its caller demands, and was withheld.

    Args:
        coverage: Share of the values that are there.
        demanded: The share that the caller's policy demands.
        missing: What is not there, in the order asked, with the reason.
    """

    def __init__(self, coverage: float, demanded: float, missing: Mapping[str, str]) -> None:
        """Name what is missing."""
        self.coverage = coverage
        self.features = tuple(missing)
        named = ", ".join(f"{name} ({reason})" for name, reason in list(missing.items())[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        super().__init__(f"{coverage:.1%} of the values are there, and at least {demanded:.1%} are demanded; missing: {named}{more}")


class RefusedError(TerminalError):
    """A dangerous or oversized request was not carried out."""


class SourceRefusedError(TerminalError):
    """A provider understood the request and will not answer it: credential, plan, ban, or no such symbol.

    Args:
        message: For people; secrets masked.
        status: The answer's HTTP status; None when the request was not even sent.
        answer: Beginning of the answer's body; secrets masked.
    """

    def __init__(self, message: str, *, status: int | None = None, answer: str = "") -> None:
        """Keep what the provider's own module needs to tell one refusal from another."""
        super().__init__(message)
        self.status = status
        self.answer = answer


class SymbolNotFoundError(SourceRefusedError):
    """A provider does not know the symbol: it was delisted or renamed, or never was the provider's."""


class StoreUnavailableError(TransientError):
    """Postgres or Redis did not answer."""


class NoTierAnsweredError(StoreUnavailableError):
    """None of the stores that can answer a read did so in time.

    Args:
        views: What was not answered.
        refusals: What each store said, a sentence each.
    """

    def __init__(self, views: Sequence[str], refusals: Sequence[str]) -> None:
        """Say what each store said."""
        self.views = tuple(views)
        super().__init__(f"no store answered for {', '.join(views)}: {'; '.join(refusals)}")


class SourceUnavailableError(TransientError):
    """A provider did not answer."""
