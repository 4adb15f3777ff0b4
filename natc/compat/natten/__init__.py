"""The interfaces of NATTEN releases 0.14 to 0.21 (https://github.com/SHI-Labs/NATTEN, MIT).

Names, signatures, defaults and attributes are those of the releases; every computation is natc's.
`install` puts the interface of one release where `import natten` finds it; `releases` says which
there are, `interface` what each consists of.
"""

from __future__ import annotations
