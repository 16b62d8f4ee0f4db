//! Operations of all ranks over the buckets of a layout.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};
use torch::ranks::Group;

use super::layout::{Bucket, Layout, Owned, Slice};
use crate::TrainError;

/// A layout, and the ranks that share it out.
pub(crate) struct Buckets {
    pub layout: Layout,
    pub group: Rc<Group>,
}

impl Buckets {
    /// Of tensors that have `lengths` numbers; `capacity` is that of a bucket.
    pub fn new(lengths: &[i64], group: Rc<Group>, capacity: i64) -> Self {
        Buckets { layout: Layout::new(lengths, group.size(), capacity), group }
    }

    /// What this rank owns, in order.
    pub fn own(&self) -> Vec<Owned> {
        self.layout.owned(self.group.rank())
    }

    /// A bucket in f32 on `device` with the numbers of `of` in their places, zeros where it gives none.
    pub fn pack<'t>(
        &self,
        bucket: &Bucket,
        device: Device,
        of: impl Fn(usize) -> Option<&'t Tensor>,
    ) -> Result<Tensor, TrainError> {
        let packed = Tensor::f_zeros([bucket.len], (Kind::Float, device))?;
        for slice in &bucket.slices {
            if let Some(tensor) = of(slice.item) {
                let numbers = tensor.f_reshape([-1])?.f_narrow(0, slice.start, slice.len)?;
                place(&packed, slice)?.f_copy_(&numbers)?;
            }
        }
        Ok(packed)
    }

    /// Makes tensors whole on all ranks: `own` gives the numbers of each part in [`Self::own`], `take` gets those of each slice, on `device`.
    /// Collective.
    pub fn gather(
        &self,
        (kind, device): (Kind, Device),
        own: impl Fn(usize) -> Result<Tensor, TrainError>,
        mut take: impl FnMut(&Slice, &Tensor) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let rank = self.group.rank();
        let mut number = 0;
        for (index, bucket) in self.layout.buckets.iter().enumerate() {
            let whole = Tensor::f_zeros([bucket.len], (kind, device))?;
            let share = self.layout.share(index);
            let range = whole.f_narrow(0, rank as i64 * share, share)?;
            for owned in self.layout.owned_of(index, rank) {
                place(&range, &owned.slice)?.f_copy_(&own(number)?)?;
                number += 1;
            }
            self.group.all_gather(&whole)?;
            for slice in &bucket.slices {
                take(slice, &place(&whole, slice)?)?;
            }
        }
        Ok(())
    }
}

/// The numbers of a slice in its bucket, or in its owner's range.
fn place(whole: &Tensor, slice: &Slice) -> Result<Tensor, TrainError> {
    Ok(whole.f_narrow(0, slice.offset, slice.len)?)
}

/// The numbers of a slice in the tensor that they are of, which has no gaps.
pub(crate) fn numbers(tensor: &Tensor, slice: &Slice) -> Result<Tensor, TrainError> {
    Ok(tensor.detach().f_view([-1])?.f_narrow(0, slice.start, slice.len)?)
}
