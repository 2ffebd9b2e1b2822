"""How often a `_p` of an untrained model is below 5 %: the rates in docs/measures.md.

python tests/benchmarks/false_positives.py [MODELS] [on-request | MEASURE …]
"""

import sys
from math import sqrt
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from untrained import LEVEL, OF_PASSES, ON_REQUEST_P_VALUES, P_VALUES, false_positives, false_positives_of_passes

if __name__ == "__main__":
    models = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    passes = [name for name in sys.argv[2:] if name in OF_PASSES]
    names = ON_REQUEST_P_VALUES if "on-request" in sys.argv[2:] else P_VALUES
    print(f"{models} untrained models of 4 × 4 heads: share with any head at p < {LEVEL}, ± standard error")
    for std in (0.02, 0.05):
        print(f"weights of standard deviation {std}")
        counts = false_positives_of_passes(models, std, passes) if passes else false_positives(models, std, names=names)
        for name, count in counts.items():
            share = count / models
            print(f"  {name:32} {share:.3f} ± {sqrt(share * (1 - share) / models):.3f}", flush=True)
