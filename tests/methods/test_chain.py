"""The training-free chain: its steps against formulas, and the contract of every method."""

from fsdino.methods.chain import ChainMethod
from tests.contract import FewShotContract
from tests.small import small_encoder


class TestChain(FewShotContract):
    def build(self) -> ChainMethod:
        return ChainMethod(small_encoder(56, (1, 3)))


class TestLongChain(FewShotContract):
    def build(self) -> ChainMethod:
        return ChainMethod(small_encoder(56, (1, 2, 3)), own_rounds=2, smoothing_steps=1, own_share=0.2)
