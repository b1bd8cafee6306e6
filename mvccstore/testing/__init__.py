"""For tests of code that uses a store, and of the store itself: a model that says what a store must answer.

Nothing in here is imported by the rest of the package.
"""

from mvccstore.testing.clock import FakeClock
from mvccstore.testing.model import Model, ModelTxn, ModelView

__all__ = ["FakeClock", "Model", "ModelTxn", "ModelView"]
