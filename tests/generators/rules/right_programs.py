"""Right programs and their tests, of the kinds that people and models write: every one has to pass."""

from __future__ import annotations

# name -> program, tests
RIGHT: dict[str, tuple[str, str]] = {
    "humaneval": (
        r"""
from typing import List
def has_close_elements(numbers: List[float], threshold: float) -> bool:
    return any(abs(a-b)<threshold for i,a in enumerate(numbers) for b in numbers[i+1:])
""",
        r"""
METADATA = {'author': 'jt'}
def check(candidate):
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) == True
    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.8) == False
check(has_close_elements)
""",
    ),
    "mbpp set": (
        r"""
def similar(a,b): return tuple(set(a)&set(b))
""",
        r"""
assert set(similar((3,4,5,6),(5,7,4,10))) == set((4,5))
""",
    ),
    "inplace sort": (
        r"""
def s(x): x.sort()
""",
        r"""
a=[3,1,2]
s(a)
assert a==[1,2,3]
""",
    ),
    "inplace nested": (
        r"""
def s(x): x[0].append(9); x.append({})
""",
        r"""
a=[[1],2]
b=a[0]
s(a)
assert a==[[1,9],2,{}] and b==[1,9] and a[0] is b
""",
    ),
    "returns same": (
        r"""
def s(x): x['k']=1; return x
""",
        r"""
d={}
assert s(d) is d and d=={'k':1}
""",
    ),
    "class": (
        r"""
class Stack:
    def __init__(self): self.items=[]
    def push(self,x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
    @property
    def top(self): return self.items[-1]
    @classmethod
    def of(cls,*a):
        s=cls(); s.items=list(a); return s
    @staticmethod
    def two(): return 2
    SIZE=7
""",
        r"""
s=Stack()
assert len(s)==0
s.push(1); s.push('a')
assert s.top=='a' and len(s)==2 and s.items==[1,'a']
assert s.pop()=='a' and s.pop()==1
try:
    s.pop()
    assert False
except IndexError as e:
    assert str(e)=='empty'
t=Stack.of(1,2,3)
assert isinstance(t,Stack) and t.items==[1,2,3] and Stack.two()==2 and Stack.SIZE==7 and t.SIZE==7
t.items.append(4)
assert t.pop()==4
t.extra=5
assert t.extra==5
assert type(t) is Stack and type(t).__name__=='Stack'
assert hasattr(t,'push') and not hasattr(t,'nope')
assert getattr(t,'nope',3)==3
""",
    ),
    "vector": (
        r"""
class Vector:
    def __init__(self,x,y): self.x=x; self.y=y
    def __add__(self,o): return Vector(self.x+o.x,self.y+o.y)
    def __mul__(self,k): return Vector(self.x*k,self.y*k)
    __rmul__=__mul__
    def __eq__(self,o): return isinstance(o,Vector) and (self.x,self.y)==(o.x,o.y)
    def __repr__(self): return f'Vector({self.x}, {self.y})'
    def __lt__(self,o): return self.x<o.x
    def __abs__(self): return (self.x**2+self.y**2)**.5
    def __getitem__(self,i): return (self.x,self.y)[i]
    def __iter__(self): yield self.x; yield self.y
    def __contains__(self,v): return v in (self.x,self.y)
""",
        r"""
assert Vector(1,2)+Vector(3,4)==Vector(4,6)
assert Vector(1,2)!=Vector(3,4)
assert Vector(1,2)*2==Vector(2,4)==2*Vector(1,2)
assert repr(Vector(1,2))=='Vector(1, 2)' and f'{Vector(1,2)}'=='Vector(1, 2)'
assert sorted([Vector(3,1),Vector(1,1)])==[Vector(1,1),Vector(3,1)]
assert abs(Vector(3,4))==5.0
assert list(Vector(5,6))==[5,6] and Vector(5,6)[1]==6
assert 5 in Vector(5,6)
x,y=Vector(7,8)
assert (x,y)==(7,8)
assert Vector(1,2)!=5
""",
    ),
    "custom error": (
        r"""
class InsufficientFunds(ValueError):
    def __init__(self, need): super().__init__(f'need {need}'); self.need=need
class Account:
    def __init__(self,b): self.balance=b
    def withdraw(self,n):
        if n>self.balance: raise InsufficientFunds(n-self.balance)
        self.balance-=n; return self.balance
""",
        r"""
a=Account(10)
assert a.withdraw(3)==7
try:
    a.withdraw(100)
    assert False
except InsufficientFunds as e:
    assert e.need==93 and str(e)=='need 93' and isinstance(e,ValueError)
import unittest
with unittest.TestCase().assertRaises(ValueError):
    a.withdraw(100)
""",
    ),
    "generator": (
        r"""
def fib():
    a,b=0,1
    while True:
        yield a
        a,b=b,a+b
""",
        r"""
import itertools
assert list(itertools.islice(fib(),8))==[0,1,1,2,3,5,8,13]
g=fib()
assert next(g)==0 and next(g)==1
import types
assert isinstance(g,types.GeneratorType)
""",
    ),
    "closure": (
        r"""
def counter():
    n=0
    def f():
        nonlocal n
        n+=1
        return n
    return f
""",
        r"""
c=counter()
assert c()==1 and c()==2
d=counter()
assert d()==1 and callable(d)
""",
    ),
    "callback": (
        r"""
def apply(f,xs): return [f(x) for x in xs]
def compose(*fs):
    def g(x):
        for f in reversed(fs): x=f(x)
        return x
    return g
""",
        r"""
assert apply(lambda x:x*2,[1,2])==[2,4]
assert apply(str,[1])==['1'] and apply(len,['ab'])==[2]
assert compose(lambda x:x+1, lambda x:x*2)(5)==11
""",
    ),
    "decorator": (
        r"""
import functools
def memoize(f):
    cache={}
    @functools.wraps(f)
    def g(*a):
        if a not in cache: cache[a]=f(*a)
        return cache[a]
    return g
""",
        r"""
calls=[]
@memoize
def sq(x):
    calls.append(x)
    return x*x
assert sq(3)==9 and sq(3)==9 and calls==[3]
assert sq.__name__=='sq'
""",
    ),
    "retry": (
        r"""
def retry(f,n):
    for i in range(n):
        try: return f()
        except ValueError: pass
    raise RuntimeError('no')
""",
        r"""
n=[0]
def flaky():
    n[0]+=1
    if n[0]<3: raise ValueError('x')
    return 'ok'
assert retry(flaky,5)=='ok' and n[0]==3
try:
    retry(lambda: (_ for _ in ()).throw(ValueError('a')),2)
    assert False
except RuntimeError as e: assert str(e)=='no'
""",
    ),
    "namedtuple": (
        r"""
from collections import namedtuple
Point=namedtuple('Point','x y')
def mid(a,b): return Point((a.x+b.x)/2,(a.y+b.y)/2)
""",
        r"""
p=mid(Point(0,0),Point(2,4))
assert p==(1.0,2.0) and p.x==1.0 and isinstance(p,tuple) and p[1]==2.0
assert p==Point(1.0,2.0)
""",
    ),
    "dataclass": (
        r"""
from dataclasses import dataclass, field
@dataclass(order=True)
class P:
    x:int
    tags:list=field(default_factory=list)
""",
        r"""
a=P(1,['a'])
assert a==P(1,['a']) and a.tags==['a'] and a<P(2) and repr(a)=="P(x=1, tags=['a'])"
a.x=5
assert a.x==5 and a!=P(1,['a'])
""",
    ),
    "enum": (
        r"""
from enum import Enum, IntEnum
class C(Enum):
    RED=1
    BLUE=2
class I(IntEnum):
    A=1
def pick(n): return C(n)
""",
        r"""
assert pick(1) is C.RED and pick(2)==C.BLUE and C.RED.value==1 and C.RED.name=='RED' and [c.name for c in C]==['RED','BLUE'] and len(C)==2 and C['RED'] is C.RED
assert I.A==1
assert {C.RED:1}[C.RED]==1
""",
    ),
    "list subclass": (
        r"""
class L(list):
    def second(self): return self[1]
    def append(self,x): super().append(x*2)
""",
        r"""
l=L([1,2])
assert l.second()==2 and l==[1,2]
l.append(3)
assert l==[1,2,6] and len(l)==3 and l[-1]==6
l[0]=9
assert l.pop(0)==9 and list(l)==[2,6]
""",
    ),
    "dict subclass": (
        r"""
class D(dict):
    def __missing__(self,k): return k*2
    def __getattr__(self,n): return self[n]
""",
        r"""
d=D(a=1)
assert d['a']==1 and d['zz']=='zzzz' and d.a==1
d['b']=2
assert d=={'a':1,'b':2} and sorted(d.keys())==['a','b']
""",
    ),
    "context": (
        r"""
class T:
    def __enter__(self): self.on=True; return self
    def __exit__(self,*a): self.on=False; return a[0] is ValueError
""",
        r"""
with T() as t:
    assert t.on
assert not t.on
with T(): raise ValueError('x')
""",
    ),
    "ctx generator": (
        r"""
from contextlib import contextmanager
@contextmanager
def cm(log):
    log.append(1)
    try: yield 'v'
    finally: log.append(2)
""",
        r"""
log=[]
with cm(log) as v:
    assert v=='v'
assert log==[1,2]
""",
    ),
    "async": (
        r"""
import asyncio
async def f(x):
    await asyncio.sleep(0)
    return x+1
""",
        r"""
import asyncio
assert asyncio.run(f(2))==3
async def main():
    return await asyncio.gather(f(1),f(2))
assert asyncio.run(main())==[2,3]
""",
    ),
    "stdout": (
        r"""
def hello(n): print('hi',n)
""",
        r"""
import io, contextlib
b=io.StringIO()
with contextlib.redirect_stdout(b): hello('x')
assert b.getvalue()=='hi x\n'
""",
    ),
    "stdin": (
        r"""
def main():
    n=int(input())
    print(sum(int(x) for x in input().split()[:n]))
""",
        r"""
import io,sys
from unittest.mock import patch
old=sys.stdout
sys.stdin=io.StringIO('3\n1 2 3\n'); sys.stdout=io.StringIO()
main()
out=sys.stdout.getvalue(); sys.stdout=old
assert out=='6\n', out
with patch('builtins.input',side_effect=['1','5']): main()
""",
    ),
    "global counter": (
        r"""
n=0
def inc():
    global n
    n+=1
""",
        r"""
inc(); inc()
assert n==2
""",
    ),
    "solution imports": (
        r"""
import math
from collections import Counter
from math import isclose
def area(r): return math.pi*r*r
""",
        r"""
assert math.isclose(area(1),math.pi) and isclose(area(2),4*math.pi)
assert Counter('aab')['a']==2
""",
    ),
    "random seeded": (
        r"""
import random
def roll(n): return [random.randint(1,6) for _ in range(n)]
""",
        r"""
import random
random.seed(3)
a=roll(5)
random.seed(3)
b=roll(5)
assert a==b and len(a)==5
""",
    ),
    "threads": (
        r"""
import threading
class C:
    def __init__(self): self.n=0; self.l=threading.Lock()
    def inc(self):
        with self.l: self.n+=1
""",
        r"""
import threading
c=C()
ts=[threading.Thread(target=c.inc) for _ in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
assert c.n==8
""",
    ),
    "files": (
        r"""
def count(p):
    with open(p) as f: return len(f.readlines())
""",
        r"""
import os
open('a.txt','w').write('1\n2\n')
assert count('a.txt')==2
os.remove('a.txt')
""",
    ),
    "singleton": (
        r"""
class S:
    _i=None
    def __new__(cls):
        if cls._i is None: cls._i=super().__new__(cls)
        return cls._i
""",
        r"""
assert S() is S()
""",
    ),
    "linked list": (
        r"""
class Node:
    def __init__(self,v,next=None): self.v=v; self.next=next
def rev(h):
    p=None
    while h: h.next,p,h=p,h,h.next
    return p
""",
        r"""
h=Node(1,Node(2,Node(3)))
r=rev(h)
out=[]
while r:
    out.append(r.v); r=r.next
assert out==[3,2,1]
""",
    ),
    "tests with a class": (
        r"""
def total(items): return sum(i.price*i.qty for i in items)
def set_it(o): o.done=True; o.left=o
""",
        r"""
class Item:
    def __init__(self,p,q): self.price=p; self.qty=q
assert total([Item(2,3),Item(1,1)])==7
i=Item(1,2); set_it(i)
assert i.done is True and i.left is i
""",
    ),
    "abstract": (
        r"""
from abc import ABC, abstractmethod
class Shape(ABC):
    @abstractmethod
    def area(self): ...
class Sq(Shape):
    def __init__(self,s): self.s=s
    def area(self): return self.s**2
""",
        r"""
assert Sq(3).area()==9 and isinstance(Sq(1),Shape) and issubclass(Sq,Shape)
try:
    Shape()
    assert False
except TypeError: pass
""",
    ),
    "types": (
        r"""
from fractions import Fraction
from decimal import Decimal
import datetime
def f(): return [Fraction(1,3),Decimal('1.10'),datetime.date(2020,1,2),datetime.timedelta(1),1j,b'x',frozenset({1}),range(3),None,...,2**200,-0.0,float('inf')]
""",
        r"""
import datetime
from fractions import Fraction
from decimal import Decimal
import math
r=f()
assert r==[Fraction(1,3),Decimal('1.10'),datetime.date(2020,1,2),datetime.timedelta(1),1j,b'x',frozenset({1}),range(3),None,...,2**200,0.0,float('inf')]
assert math.copysign(1,r[11])==-1 and str(r[1])=='1.10'
""",
    ),
    "default/kw": (
        r"""
def f(a,*b,c=3,**d): return (a,b,c,d)
""",
        r"""
assert f(1,2,c=4,z=5)==(1,(2,),4,{'z':5})
""",
    ),
    "deep nest": (
        r"""
def flat(x):
    out=[];st=[x]
    while st:
        v=st.pop()
        if isinstance(v,list): st.extend(reversed(v))
        else: out.append(v)
    return out
""",
        r"""
x=1
for _ in range(800): x=[x]
assert flat(x)==[1]
""",
    ),
    "recursion err": (
        r"""
def f(n): return f(n+1)
""",
        r"""
try:
    f(0)
    assert False
except RecursionError: pass
""",
    ),
    "big list": (
        r"""
def s(x): return sorted(x)
""",
        r"""
import random
x=[random.random() for _ in range(100000)]
assert s(x)==sorted(x)
""",
    ),
    "many calls": (
        r"""
def f(x): return x*x
""",
        r"""
for i in range(3000): assert f(i)==i*i
""",
    ),
    "unittest class": (
        r"""
def add(a,b): return a+b
""",
        r"""
import unittest
class T(unittest.TestCase):
    def test_a(self): self.assertEqual(add(1,2),3)
r=unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))
assert r.wasSuccessful() and r.testsRun==1
""",
    ),
    "iterators": (
        r"""
def m(xs): return map(lambda x:x+1,xs)
def k(d): return d.keys()
""",
        r"""
assert list(m([1,2]))==[2,3] and k({'a':1})=={'a'} and sorted(k({'b':1,'a':2}))==['a','b']
""",
    ),
    "type hint": (
        r"""
def f(x:int)->str: return str(x)
""",
        r"""
assert f.__annotations__=={'x':int,'return':str} and f.__name__=='f'
""",
    ),
    "lru": (
        r"""
from functools import lru_cache
@lru_cache(None)
def fib(n): return n if n<2 else fib(n-1)+fib(n-2)
""",
        r"""
assert fib(50)==12586269025
assert fib.cache_info().misses==51
""",
    ),
    "nan": (
        r"""
def f(): return float('nan')
""",
        r"""
import math
assert math.isnan(f()) and f()!=f()
""",
    ),
    "deque": (
        r"""
from collections import deque, OrderedDict, defaultdict
def f(): return deque([1,2],maxlen=5), OrderedDict(a=1), defaultdict(list,{'x':[1]})
""",
        r"""
from collections import deque
a,b,c=f()
assert a==deque([1,2]) and b=={'a':1} and c=={'x':[1]} and c['q']==[]
""",
    ),
}
