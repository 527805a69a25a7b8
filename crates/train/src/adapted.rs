//! A model with adapters beside it as a source of weights: both as they are, or one folded into the other.

use std::ops::Range;
use std::path::{Path, PathBuf};

use mp_plan::lora::{is_factor, FIRST_FACTOR, SECOND_FACTOR};
use mp_plan::LoraConfig;
use mp_runtime::{bytes, Kind, Tensor};

use crate::checkpoint::{Dtype, Entry};
use crate::region;
use crate::weights::{self, WeightSource};
use crate::{Error, Result};

/// The adapters that a source holds beside a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapters {
    /// What they are.
    pub lora: LoraConfig,
    /// The folder of the model under them.
    pub base: PathBuf,
}

/// A model and its adapters, under the names of both.
#[derive(Debug)]
pub struct Adapted {
    base: Box<dyn WeightSource>,
    factors: Box<dyn WeightSource>,
    adapters: Adapters,
}

impl Adapted {
    /// Puts adapters beside a model.
    pub fn new(base: Box<dyn WeightSource>, factors: Box<dyn WeightSource>, adapters: Adapters) -> Self {
        Self { base, factors, adapters }
    }

    /// Returns the model under the adapters.
    pub fn into_base(self) -> Box<dyn WeightSource> {
        self.base
    }

    fn of(&self, name: &str) -> &dyn WeightSource {
        match is_factor(name) {
            true => &*self.factors,
            false => &*self.base,
        }
    }
}

impl WeightSource for Adapted {
    fn names(&self) -> Vec<String> {
        [self.base.names(), self.factors.names()].concat()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.of(name).entry(name)
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        self.of(name).read(name, region)
    }

    fn read_into(&self, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Result<()> {
        self.of(name).read_into(name, region, into)
    }

    fn origin(&self) -> &Path {
        self.factors.origin()
    }

    fn adapters(&self) -> Option<&Adapters> {
        Some(&self.adapters)
    }
}

/// A model with its adapters folded in: `W + (alpha / rank) · B·A`, computed in double precision.
#[derive(Debug)]
pub struct Merged {
    adapted: Adapted,
    dtype: Option<Dtype>,
}

impl Merged {
    /// Folds adapters in; the matrices that have some come in the kind `dtype`, or else in that of the model, and at least in
    /// single precision, so that what is small beside a matrix is not lost in rounding.
    pub fn new(adapted: Adapted, dtype: Option<Dtype>) -> Self {
        Self { adapted, dtype }
    }

    /// Returns the names of the factors beside a matrix, where it has adapters.
    fn beside(&self, name: &str) -> Option<[String; 2]> {
        let matrix = name.strip_suffix("weight")?;
        let names = [FIRST_FACTOR, SECOND_FACTOR].map(|last| format!("{matrix}{last}"));
        self.adapted.factors.entry(&names[0]).is_some().then_some(names)
    }

    /// Reads a box in double precision.
    fn double(source: &dyn WeightSource, name: &str, region: [Range<usize>; 2]) -> Result<Tensor> {
        let refused = |problem| Error::Checkpoint { path: source.origin().into(), problem };
        let entry = source.entry(name).ok_or_else(|| refused(format!("it holds no tensor `{name}`")))?;
        let shape = [region[0].len() as i64, region[1].len() as i64];
        let read = weights::tensor(source, &entry, &region)?.f_view(shape);
        Ok(read.and_then(|read| read.f_to_kind(Kind::Double)).map_err(mp_runtime::Error::from)?)
    }

    fn fold(&self, name: &str, [first, second]: &[String; 2], [rows, columns]: [Range<usize>; 2]) -> Result<Tensor> {
        let Adapted { base, factors, adapters } = &self.adapted;
        let all = 0..adapters.lora.rank;
        let matrix = Self::double(&**base, name, [rows.clone(), columns.clone()])?;
        let (a, b) =
            (Self::double(&**factors, first, [all.clone(), columns])?, Self::double(&**factors, second, [rows, all])?);
        let product = b.f_mm(&a).and_then(|product| product.f_mul_scalar(adapters.lora.scale()));
        Ok(product.and_then(|product| product.f_add(&matrix)).map_err(mp_runtime::Error::from)?)
    }
}

impl WeightSource for Merged {
    fn names(&self) -> Vec<String> {
        self.adapted.base.names()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let entry = self.adapted.base.entry(name)?;
        let dtype = match (self.beside(name), self.dtype, entry.dtype) {
            (None, _, own) | (Some(_), None, own @ Dtype::F64) => own,
            (Some(_), Some(chosen), _) => chosen,
            (Some(_), None, _) => Dtype::F32,
        };
        Some(Entry { dtype, ..entry })
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        let (Some(factors), Some(entry), [rows, columns]) = (self.beside(name), self.entry(name), region) else {
            return self.adapted.base.read(name, region);
        };
        let folded = self.fold(name, &factors, [rows.clone(), columns.clone()])?;
        let cast = folded.f_to_kind(entry.dtype.kind()).map_err(mp_runtime::Error::from)?;
        Ok(bytes::view(&cast)?.to_vec())
    }

    fn origin(&self) -> &Path {
        self.adapted.origin()
    }
}

/// Tells a model from another, or from itself trained further: a checksum over what each of its tensors is, and the first row
/// of each. What adapters beside it hold does not count.
///
/// # Errors
/// What reading raises.
pub fn mark(source: &dyn WeightSource) -> Result<String> {
    let mut checksum = blake3::Hasher::new();
    let mut names: Vec<String> = source.names().into_iter().filter(|name| !is_factor(name)).collect();
    names.sort_unstable();
    for entry in names.iter().filter_map(|name| source.entry(name)) {
        let mut first = region::whole(&entry.shape);
        if let [rows, _, ..] = &mut first[..] {
            *rows = 0..1;
        }
        checksum.update(format!("{}{:?}{:?}", entry.name, entry.dtype, entry.shape).as_bytes());
        checksum.update(&source.read(&entry.name, &first)?);
    }
    Ok(checksum.finalize().to_hex().to_string())
}
