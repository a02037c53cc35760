"""Write src/dctps/data/digits.npz from scikit-learn's bundled copy of the UCI digits.

    python tools/make_digits.py

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (test part), UCI Machine
Learning Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parent.parent / "src" / "dctps" / "data" / "digits.npz"

if __name__ == "__main__":
    digits = load_digits()
    np.savez_compressed(TARGET, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
