//! Whole models whose matrices and sequences are cut.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_model::context::{Context, Form};
use mp_model::regions::Between;
use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use mp_runtime::rng::Stream;
use mp_runtime::{Kind, Tensor};

pub const SEQ: i64 = 16;
pub const VOCAB: i64 = 37;
/// Of one of four heads.
pub const WIDTH: usize = 8;

pub fn architecture(name: ArchitectureName, layers: usize, dropout: f64) -> Architecture {
    let config = ModelConfig {
        architecture: name,
        hidden: 4 * WIDTH,
        layers,
        heads: 4,
        kv_heads: if name == ArchitectureName::Llama { 2 } else { 0 },
        vocab: VOCAB as usize,
        max_seq: SEQ as usize,
        dropout,
        ..ModelConfig::default()
    };
    Architecture::resolve(&config, 0, SEQ as usize).unwrap()
}

/// Random ids, the same on every rank.
pub fn ids(batch: i64, name: &str) -> Tensor {
    let drawn = Tensor::from_slice(&Stream::new(4, name, 0).normals(0..(batch * SEQ) as u64));
    (drawn.abs() * 1000.0).to_kind(Kind::Int64).remainder(VOCAB).view([batch, SEQ])
}

#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub tp: usize,
    pub cp: usize,
    pub between: Between,
    pub form: Form,
}

pub const ALONE: Layout = Layout { tp: 1, cp: 1, between: Between::Replicated, form: Form::Ring };

impl Layout {
    /// Cuts the world into this rank's tensor group and its context.
    pub fn groups(&self, world: &dyn Communicator) -> mp_model::Result<(Arc<dyn Communicator>, Context)> {
        let rank = world.rank().0;
        let part = |color: usize, name: &str| world.split(Some(color as u32), rank as u32, name);
        let tp = part(rank / self.tp, "tp")?.expect("all take part");
        let cp = part(rank % self.tp, "cp")?.expect("all take part");
        Ok((tp, Context { comm: cp, form: self.form }))
    }
}
