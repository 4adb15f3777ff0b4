"""The interfaces of NATTEN releases 0.14 to 0.21 (https://github.com/SHI-Labs/NATTEN, MIT).

Names, signatures, defaults and attributes follow the releases; natc does every computation.
`releases` lists the releases, `interface` collects the names of one, `union` merges them all, and
`install` puts the result where `import natten` finds it.
"""

from __future__ import annotations
