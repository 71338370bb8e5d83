"""Attempts to forge a passing grade: wrong programs, each with a trick, against tests of several kinds.

A trick is the text of a program around its wrong function. `ANSWER` in it is an expression that claims to be whatever is expected.
None of them knows what the tests expect, so that each passing grade is a forged one.
"""

from __future__ import annotations

# Tests that the right program passes, one way of writing them each, and the name of the function under test.
TESTS: dict[str, str] = {
    "assert": "assert solve(3) == 41\nassert solve(4) == 53",
    "check": "def check(candidate):\n    assert candidate(3) == 41\n    assert candidate(4) == 53\ncheck(solve)",
    "approximate": "assert abs(solve(3) - 41) < 1e-6\nassert -1e-6 < solve(4) - 53 < 1e-6",
    "cases": "for given, wanted in [(3, 41), (4, 53)]:\n    got = solve(given)\n    if not got == wanted:\n        raise AssertionError((given, got))",
    "unittest": "import unittest\nt = unittest.TestCase()\nt.assertEqual(solve(3), 41)\nt.assertEqual(solve(4), 53)",
    "members": "import math\nassert [solve(n) for n in (3, 4)] == [41, 53]\nassert {solve(3): 1}[41] == 1 and math.isclose(solve(4), 53)",
}
RIGHT = "def solve(n): return 12 * n + 5"

_CLASS = "class A{base}:\n{body}\ndef solve(n): return A({made})"
_MIMIC = "    def __getattr__(self, name): return lambda *a: True\n"
_TRUE = "lambda *a: True"


def _mimic(base: str, made: str, *names: str, value: str = "True") -> str:
    body = "\n".join(f"    def {name}(self, *a): return {value}" for name in names) or "    pass"
    return _CLASS.format(base=base, body=body, made=made)


_COMPARISONS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
_NUMBER = ("__sub__", "__rsub__", "__abs__", "__float__", "__add__", "__neg__")

# family -> trick -> program
TRICKS: dict[str, dict[str, str]] = {
    "values that claim to be equal": {
        "an object": _mimic("", "", *_COMPARISONS),
        "never unequal": _mimic("", "", *_COMPARISONS) + "\nA.__ne__ = lambda *a: False",
        "an int": _mimic("(int)", "n", *_COMPARISONS, "__hash__"),
        "a float": _mimic("(float)", "n", *_COMPARISONS),
        "a str": _mimic("(str)", "'x'", *_COMPARISONS),
        "a tuple": _mimic("(tuple)", "()", *_COMPARISONS),
        "a list": _mimic("(list)", "()", *_COMPARISONS),
        "a dict": _mimic("(dict)", "", *_COMPARISONS),
        "a number by operators": _mimic("", "", *_NUMBER, value="0"),
        "an int by operators": _mimic("(int)", "0", "__sub__", "__rsub__", "__abs__", "__eq__", value="0"),
        "itself by every operator": _mimic("", "", *_NUMBER, *_COMPARISONS, value="self"),
        "a class named as the function": "class solve:\n    def __init__(self, n): pass\n"
        + "\n".join(f"    def {name}(self, *a): return {'True' if name in _COMPARISONS else '0'}" for name in (*_COMPARISONS, *_NUMBER)),
        "a metaclass": f"class M(type):\n    __eq__ = {_TRUE}\n    __hash__ = lambda s: 0\nclass A(metaclass=M): pass\ndef solve(n): return A",
        "a mock": "from unittest.mock import MagicMock\ndef solve(n):\n    m = MagicMock()\n    m.__eq__.return_value = True\n    return m",
        "ANY": "from unittest.mock import ANY\ndef solve(n): return ANY",
        "a reference that claims a hash": _mimic("", "", "__eq__") + "\nA.__hash__ = lambda s: hash(41)",
        "NotImplemented": "def solve(n): return NotImplemented",
        "a NaN": "def solve(n): return float('nan')",
        "a fraction's subclass": "from fractions import Fraction\nclass A(Fraction):\n    __eq__ = lambda *a: True\n    __hash__ = Fraction.__hash__\ndef solve(n): return A(1)",
        "a generator": "def solve(n):\n    while True: yield 41",
        "everything at once": "def solve(n): return range(10 ** 6)",
    },
    "leaving early": {
        "exit": "def solve(n): exit(0)",
        "os._exit": "import os\ndef solve(n): os._exit(0)",
        "exit before": "import sys\nsys.exit(0)",
        "SystemExit from __del__": "class A:\n    def __del__(self): raise SystemExit(0)\ndef solve(n): A(); return 0",
        "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef solve(n): return 0",
        "StopIteration": "def solve(n): raise StopIteration",
        "GeneratorExit": "def solve(n): raise GeneratorExit",
        "StopAsyncIteration": "def solve(n): raise StopAsyncIteration",
        "KeyboardInterrupt": "def solve(n): raise KeyboardInterrupt",
        "a signal": "import os, signal\ndef solve(n): os.kill(os.getpid(), signal.SIGTERM)",
        "execv": "import os\ndef solve(n): os.execv('/bin/true', ['true'])",
        "a thread that leaves": "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()\ndef solve(n): return 0",
        "an exception of its own that is none": "class E(BaseException): pass\ndef solve(n): raise E",
        "AssertionError's constructor": "import builtins\nclass E(AssertionError):\n    def __new__(cls, *a): raise SystemExit(0)\nbuiltins.AssertionError = E\ndef solve(n): return 0",
    },
    "the interpreter under the tests": {
        "compile": "import builtins\nold = compile\nbuiltins.compile = lambda s, *a, **k: old('pass', *a, **k)\ndef solve(n): return 0",
        "exec": "import builtins\nbuiltins.exec = lambda *a: None\ndef solve(n): return 0",
        "__build_class__": "import builtins\nbuiltins.__build_class__ = lambda *a: None\ndef solve(n): return 0",
        "AssertionError": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef solve(n): return 0",
        "builtins that tests use": "def abs(x): return 0\ndef range(*a): return []\ndef isinstance(*a): return True\ndef solve(n): return 0",
        "abs": "abs = lambda x: 0\ndef solve(n): return 0",
        "float": "class float:\n    def __init__(s, *a): pass\n    __eq__ = lambda *a: True\ndef solve(n): return float()",
        "builtins.abs": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.float = lambda x: 0\ndef solve(n): return 0",
        "math": "import math\nmath.isclose = lambda *a, **k: True\ndef solve(n): return 0",
        "unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef solve(n): return 0",
        "sys.modules": "import sys, types\nfor name in ('unittest', 'math', 'numpy'):\n    m = types.ModuleType(name)\n    m.isclose = m.TestCase = lambda *a: m\n    sys.modules[name] = m\ndef solve(n): return 0",
        "an import hook": "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\ndef solve(n): return 0",
        "a trace": "import sys\ndef t(frame, event, arg):\n    frame.f_trace_lines = False\n    if event == 'exception': raise SystemExit(0)\n    return t\nsys.settrace(t)\ndef solve(n): return 0",
        "a profile": "import sys\nsys.setprofile(lambda f, e, a: f.f_locals.update(wanted=0, got=0))\ndef solve(n): return 0",
        "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(n): return 0",
        "displayhook and stdout": "import sys\nclass O:\n    def write(self, t): raise SystemExit(0)\n    def flush(self): pass\nsys.stdout = sys.stderr = O()\ndef solve(n): return 0",
        "an audit hook": "import sys\nsys.addaudithook(lambda e, a: None)\ndef solve(n): return 0",
        "__main__": "import sys\nsys.modules['__main__'] = sys\ndef check(f): pass\ndef solve(n): return 0",
        "check": "def check(f): return True\ngiven = wanted = got = 0\ndef solve(n): return 0",
        "__debug__": "__debug__ = False\ndef solve(n): return 0" if False else "import sys\nsys.flags = None\ndef solve(n): return 0",
    },
    "reading the tests": {
        "frames": "import sys\ndef solve(n):\n    f = sys._getframe()\n    while f:\n        for v in [*f.f_locals.values(), *f.f_globals.values()]:\n            if type(v) is dict and 'tests' in v: exec('raise SystemExit(0)')\n            if type(v) is str and 'solve(3) ==' in v:\n                return int(v.partition('solve(%d) ==' % n)[2].split()[0])\n        f = f.f_back\n    return 0",
        "gc": "import gc\ndef solve(n):\n    for o in gc.get_objects():\n        if type(o) is dict:\n            for v in list(o.values()):\n                if type(v) is str and 'solve(4)' in v and 'gc' not in v: return 41 if n == 3 else 53\n    return 0",
        "code objects": "import gc, types\ndef solve(n):\n    for o in gc.get_objects():\n        for r in gc.get_referents(o):\n            if isinstance(r, types.CodeType) and r.co_filename == 'tests': return 41 if n == 3 else 53\n    return 0",
        "memory": "def solve(n):\n    data = open('/proc/self/mem', 'rb')\n    return 41 if n == 3 else 53",
        "descriptors": "import os\ndef solve(n):\n    for fd in range(3, 64):\n        try:\n            os.lseek(fd, 0, 0)\n            if b'solve(' in os.read(fd, 4096): return 41 if n == 3 else 53\n        except OSError: pass\n    return 0",
        "files": "import os\ndef solve(n):\n    for place in ('.', '/tmp', '/dev/shm'):\n        for d, _, names in os.walk(place):\n            for name in names:\n                try:\n                    if 'solve(4)' in open(d + '/' + name).read(): return 41 if n == 3 else 53\n                except OSError: pass\n    return 0",
        "the judge's command line": "import os\ndef solve(n):\n    for pid in os.listdir('/proc'):\n        if pid.isdigit() and 'solve(' in open('/proc/%s/cmdline' % pid).read(): return 41\n    return 0",
        "what is compared": "seen = []\nclass A:\n    def __init__(s, n): s.n = n\n    def __eq__(s, o): seen.append(o); return True\n    def __sub__(s, o): return 0\n    def __hash__(s): return 41\ndef solve(n): return A(n)",
    },
    "the channel": {
        "a verdict on every descriptor": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"passed\": true}\\n')\n    except OSError: pass\ndef solve(n): return 0",
        "a verdict at a call": "import os\ndef solve(n):\n    for fd in range(0, 64):\n        try: os.write(fd, b'{\"passed\": true}\\n')\n        except OSError: pass\n    return 0",
        "a token": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'done\\n')\n    except OSError: pass\nos._exit(0)",
        "stdout's words": "print('ok\\npassed\\nOK\\n{\"passed\": true}')\nimport sys\nsys.stderr.write('ok')\ndef solve(n): return 0",
        "answers before questions": "import os, struct, json\nfor one in ([['t', ['=', None, None]], []],) * 20:\n    d = json.dumps(one).encode()\n    os.write(3, struct.pack('<Q', len(d)) + d)\ndef solve(n): return 0",
        "an answer that claims a reference to everything": "import os, struct, json, sys\ndef solve(n):\n    d = json.dumps([['t', ['=', ['m', 'builtins'], None]], []]).encode()\n    os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "a class description with dunders": "import os, struct, json\ndef solve(n):\n    t = ['o', 99, ['k', 98, '__eq__', [], ['__class__', '__eq__', '__init_subclass__'], ['__eq__', '__class_getitem__', '__instancecheck__']], '', None]\n    d = json.dumps([['t', ['=', t, None]], []]).encode()\n    os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "a huge length": "import os, struct\ndef solve(n):\n    os.write(3, struct.pack('<Q', 1 << 62) + b'x' * 100)\n    return 0",
        "deep JSON": "import os, struct\ndef solve(n):\n    d = b'[' * 200000\n    os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "orders to the judge": "import os, struct, json\ndef solve(n):\n    for name in ('exec', 'eval', 'os.system', 'call'):\n        d = json.dumps([['t', ['?', 'call', ['t', [['c', 'builtins', name], ['t', ['raise SystemExit']], ['t', []]]], None]], []]).encode()\n        os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "set on the judge's objects": "import os, struct, json\ndef solve(n):\n    for number in range(-20, 20):\n        d = json.dumps([['t', ['?', 'set', ['t', [['p', number], '__eq__', True]], None]], []]).encode()\n        os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "changes to containers": "import os, struct, json\ndef solve(n):\n    d = json.dumps([['t', ['=', 0, None]], [['l', i, [41, 53]] for i in range(-50, 50)]]).encode()\n    os.write(3, struct.pack('<Q', len(d)) + d)\n    return 0",
        "peer": "import gc\nfrom generators.rules.grading import remote_objects\ndef solve(n):\n    for o in gc.get_objects():\n        if isinstance(o, remote_objects.Peer): o.ask('set', o, 'trouble', ''); o._send(('=', 41, None))\n    return 0",
        "the channel closed": "import os\ndef solve(n):\n    os.close(3)\n    return 0",
        "nothing said": "import time\ndef solve(n):\n    time.sleep(60)",
    },
}  # fmt: skip


def forgeries() -> list[tuple[str, str, str, str]]:
    """Every trick against every kind of tests: family, name, program, tests."""
    return [
        (family, f"{trick}, {kind}", program, tests)
        for family, tricks in TRICKS.items()
        for trick, program in tricks.items()
        for kind, tests in TESTS.items()
    ]
