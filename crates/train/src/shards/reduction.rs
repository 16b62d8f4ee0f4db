//! Gradients summed over ranks: whole on each (stage 0), or to each rank the part that it owns (stage 2). Sums are in f32.
//!
//! Both stages sum the same buckets, so that a number has the same sum in both: Gloo's order of adding depends on the place in a buffer.

use config::ZeroStage;
use tch::{Device, Kind, Tensor};

use super::buckets::{Buckets, numbers};
use super::layout::Owned;
use crate::TrainError;

/// Numbers whose squares are summed at a time: they are in f64 meanwhile.
const SQUARED: i64 = 1 << 22;

/// The gradients of the trained weights, called items here, and their sums over ranks.
pub(crate) struct Reduction {
    pub buckets: Buckets,
    pub stage: ZeroStage,
    /// The device of the weights that layers compute with: there ranks exchange numbers.
    device: Device,
    /// Stage 2: gradients by item since the last round, in the type that they came in or f32.
    pending: Vec<Option<Tensor>>,
    /// Stage 2: sums of what this rank owns, by bucket.
    sums: Vec<Option<Tensor>>,
    /// Items that had a gradient here.
    is_present: Vec<bool>,
}

impl Reduction {
    /// Of items in `buckets`; layers compute on `device`.
    pub fn new(buckets: Buckets, num_items: usize, stage: ZeroStage, device: Device) -> Self {
        let sums = buckets.layout.buckets.iter().map(|_| None).collect();
        let pending = (0..num_items).map(|_| None).collect();
        Reduction { buckets, stage, device, pending, sums, is_present: vec![false; num_items] }
    }

    /// Whether each rank holds only a part.
    pub fn is_sharded(&self) -> bool {
        self.stage == ZeroStage::Two
    }

    /// Keeps a gradient for the next round.
    pub fn keep(&mut self, item: usize, gradient: Tensor) -> Result<(), TrainError> {
        let pending = &mut self.pending[item];
        *pending = Some(match pending.take() {
            None => gradient,
            Some(sum) => sum.f_to_kind(Kind::Float)?.f_add(&gradient.f_to_kind(Kind::Float)?)?,
        });
        Ok(())
    }

    /// Drops gradients and sums.
    pub fn discard(&mut self) {
        self.pending.fill_with(|| None);
        self.sums.fill_with(|| None);
        self.is_present.fill(false);
    }

    /// Sums what was kept since the last round over ranks, and adds it to the sums of what this rank owns, which lie on `master_device`.
    /// Collective; ranks without gradients add zeros.
    pub fn round(&mut self, master_device: Device) -> Result<(), TrainError> {
        self.note_presence();
        for (index, bucket) in self.buckets.layout.buckets.iter().enumerate() {
            let packed =
                self.buckets.pack(bucket, self.device, |item| self.pending[item].as_ref())?;
            let next = self.buckets.layout.buckets.get(index + 1);
            let next = next.and_then(|bucket| bucket.slices.first());
            for slice in &bucket.slices {
                // A weight that goes on in the next bucket is still needed.
                if next.is_none_or(|next| next.item != slice.item) {
                    self.pending[slice.item] = None;
                }
            }
            let own = self.buckets.group.reduce_scatter_sum(&packed)?;
            match &mut self.sums[index] {
                Some(sum) => drop(sum.f_add_(&own.f_to_device(master_device)?)?),
                // A copy: it may be a part of the whole bucket.
                none => *none = Some(own.f_to_device_(master_device, Kind::Float, false, true)?),
            }
        }
        Ok(())
    }

    fn note_presence(&mut self) {
        for (is_present, pending) in self.is_present.iter_mut().zip(&self.pending) {
            *is_present |= pending.is_some();
        }
    }

    /// Stage 2: ends the sums; the gradients of what this rank owns, where any rank had one. Collective.
    pub fn own_gradients(
        &mut self,
        master_device: Device,
    ) -> Result<Vec<Option<Tensor>>, TrainError> {
        let is_open = self.pending.iter().any(Option::is_some);
        self.note_presence();
        let (is_present, is_open_anywhere) = self.anywhere(is_open)?;
        if is_open_anywhere {
            self.round(master_device)?;
        }
        let of = |owned: &Owned| {
            let sum = self.sums[owned.bucket].as_ref().filter(|_| is_present[owned.slice.item]);
            sum.map(|sum| Ok(sum.f_narrow(0, owned.slice.offset, owned.slice.len)?)).transpose()
        };
        let gradients = self.buckets.own().iter().map(of).collect::<Result<_, TrainError>>()?;
        self.discard();
        Ok(gradients)
    }

    /// Stage 0: sums the gradients by item over all ranks, in place; one that another rank has comes to be here too, with the shape and on
    /// the device of `like`. Collective.
    pub fn reduce_whole(
        &mut self,
        gradients: &mut [Option<Tensor>],
        like: impl Fn(usize) -> (Vec<i64>, Device),
    ) -> Result<(), TrainError> {
        for (is_present, gradient) in self.is_present.iter_mut().zip(gradients.iter()) {
            *is_present = gradient.is_some();
        }
        let (is_present, _) = self.anywhere(false)?;
        self.is_present.fill(false);
        for (item, gradient) in gradients.iter_mut().enumerate().filter(|(i, _)| is_present[*i]) {
            *gradient = Some(match gradient.take() {
                Some(gradient) => gradient.f_contiguous()?,
                None => {
                    let (shape, device) = like(item);
                    Tensor::f_zeros(shape, (Kind::Float, device))?
                }
            });
        }
        for bucket in &self.buckets.layout.buckets {
            let packed = self.buckets.pack(bucket, self.device, |item| gradients[item].as_ref())?;
            self.buckets.group.all_reduce_sum(&packed)?;
            for slice in &bucket.slices {
                if let Some(gradient) = &gradients[slice.item] {
                    let sum = packed.f_narrow(0, slice.offset, slice.len)?;
                    numbers(gradient, slice)?.f_copy_(&sum)?;
                }
            }
        }
        Ok(())
    }

    /// Sums of the squares of gradients, in f64, by what the ranks own: first all that rank 0 does. The same on all ranks. `of` gives the gradient
    /// of what a rank owns; at stage 2 that of the others is known to them alone. Collective.
    pub fn squares(
        &self,
        of: impl Fn(usize, usize, &Owned) -> Result<Option<Tensor>, TrainError>,
    ) -> Result<Vec<(usize, f64)>, TrainError> {
        let mut items = Vec::new();
        let mut sums = Vec::new();
        for rank in 0..self.buckets.group.size() {
            for (index, owned) in self.buckets.layout.owned(rank).iter().enumerate() {
                items.push(owned.slice.item);
                let is_known = !self.is_sharded() || rank == self.buckets.group.rank();
                let gradient = if is_known { of(rank, index, owned)? } else { None };
                sums.push(match gradient {
                    Some(gradient) => square_sum(&gradient)?.f_to_device(self.device)?,
                    None => Tensor::f_zeros([], (Kind::Double, self.device))?,
                });
            }
        }
        if sums.is_empty() {
            return Ok(Vec::new());
        }
        let sums = Tensor::f_stack(&sums, 0)?;
        if self.is_sharded() {
            // All but one add 0, so that no order of adding matters.
            self.buckets.group.all_reduce_sum(&sums)?;
        }
        Ok(items.into_iter().zip(Vec::<f64>::try_from(&sums)?).collect())
    }

    /// Which items have a gradient on any rank, and whether `more` holds on any. Collective.
    fn anywhere(&self, more: bool) -> Result<(Vec<bool>, bool), TrainError> {
        let flags: Vec<i64> =
            self.is_present.iter().chain([&more]).map(|&x| i64::from(x)).collect();
        let flags = Tensor::f_from_slice(&flags)?.f_to_device(self.device)?;
        self.buckets.group.all_reduce_max(&flags)?;
        let mut flags: Vec<bool> =
            Vec::<i64>::try_from(&flags)?.into_iter().map(|flag| flag > 0).collect();
        let more = flags.pop().unwrap_or_default();
        Ok((flags, more))
    }
}

/// The sum of the squares of flat f32 numbers: an f64 scalar on their device.
fn square_sum(flat: &Tensor) -> Result<Tensor, TrainError> {
    let len = flat.size()[0];
    let mut sum = Tensor::f_zeros([], (Kind::Double, flat.device()))?;
    for start in (0..len).step_by(SQUARED as usize) {
        let part = flat.f_narrow(0, start, SQUARED.min(len - start))?;
        let _ = sum.f_add_(&part.f_to_kind(Kind::Double)?.f_square_()?.f_sum(Kind::Double)?)?;
    }
    Ok(sum)
}
