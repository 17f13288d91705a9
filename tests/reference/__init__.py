"""The slow truth: every operation that numpy lacks, in float64, as a formula or a loop anyone can check.

A function may bear a file's name, as softmax and norm do: the package has the function.
"""

from reference.attention import *
from reference.conv import *
from reference.elementwise import *
from reference.index import *
from reference.loss import *
from reference.norm import *
from reference.optim import *
from reference.pool import *
from reference.recurrent import *
from reference.reduce import *
from reference.softmax import *
