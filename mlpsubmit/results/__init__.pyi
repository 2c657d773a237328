from ._plot import plot as plot
from .dataset import to_dataset as to_dataset
from .export import write as write
from .expt_trace import ExptTrace as ExptTrace
from .source import Dimension as Dimension
from .source import Layout as Layout
from .source import Thresholds as Thresholds
from .table import summary_table as summary_table
