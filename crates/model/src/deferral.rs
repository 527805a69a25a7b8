//! Weight gradients put off: a backward pass that computes input gradients first, and the products for weights later.
//!
//! # Source
//! Qi et al. 2023, arXiv:2401.10241, §2: the backward split in B and W.

use std::sync::Mutex;

use mp_runtime::Tensor;

use crate::weight::Weight;
use crate::Result;

/// Whether products for weights wait, and those that do.
#[derive(Debug, Default)]
pub(crate) struct Deferral {
    waiting: Mutex<Option<Vec<Product>>>,
}

#[derive(Debug)]
struct Product {
    weight: Weight,
    dy: Tensor,
    x: Tensor,
}

/// Products of one backward pass, to be made when there is time.
#[derive(Debug)]
#[must_use = "gradients are incomplete until the products are made"]
pub struct DeferredProducts(Vec<Product>);

impl Deferral {
    /// Keeps a product for later, or gives it back where none is put off.
    pub(crate) fn offer(&self, weight: &Weight, dy: &Tensor, x: &Tensor) -> Option<(Tensor, Tensor)> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let (dy, x) = (dy.shallow_clone(), x.shallow_clone());
        match &mut *waiting {
            None => Some((dy, x)),
            Some(products) => {
                products.push(Product { weight: weight.share(), dy, x });
                None
            }
        }
    }

    /// Puts products off until they are taken.
    pub(crate) fn begin(&self) {
        *self.waiting.lock().expect("no holder panics") = Some(Vec::new());
    }

    /// Takes all products that were put off, and lets later ones be made at once.
    pub(crate) fn take(&self) -> DeferredProducts {
        DeferredProducts(self.waiting.lock().expect("no holder panics").take().unwrap_or_default())
    }
}

impl DeferredProducts {
    /// Adds all products to the gradients.
    ///
    /// # Errors
    /// What [`Weight::accumulate_product`] raises.
    pub fn run(self) -> Result<()> {
        self.0.into_iter().try_for_each(|Product { weight, dy, x }| weight.product(&dy, &x))
    }
}
