"""What scripts of MLPscape and modelscape call by the same name here, without torch."""

from mlpsubmit.batchfns.monomial import Monomial
from mlpsubmit.results.expt_trace import ExptTrace

__all__ = ["ExptTrace", "Monomial"]
