//! Counts the judge's failures and decides when there are too many.

/// Verdicts below which none is too many by its share: one of three says little.
const MIN_ASKED: usize = 10;

/// The verdicts of a step, one for each row.
#[derive(Debug)]
pub(super) struct Tally {
    /// Share of the verdicts that may fail.
    max_failed: f64,
    /// Whether the judge has given a verdict in this run: replies of an earlier one say nothing of it.
    has_answered: bool,
    /// Whether it replied at all, if by no verdict.
    has_replied: bool,
    asked: usize,
    failed: usize,
    last: String,
}

impl Tally {
    pub(super) fn new(max_failed: f64) -> Self {
        Self {
            max_failed,
            has_answered: false,
            has_replied: false,
            asked: 0,
            failed: 0,
            last: String::new(),
        }
    }

    /// A judge is configured.
    pub(super) fn note_reply(&mut self) {
        self.has_replied = true;
    }

    /// The judge itself gave a verdict.
    pub(super) fn note_answer(&mut self) {
        self.has_answered = true;
    }

    pub(super) fn note(&mut self, verdict: &Result<f64, String>) {
        self.asked += 1;
        if let Err(reason) = verdict {
            self.failed += 1;
            self.last.clone_from(reason);
        }
    }

    /// Whether there was a verdict in this run.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Looks at a batch of the first step.
    ///
    /// # Errors
    /// Where the judge cannot be had.
    pub(super) fn check_first(&self) -> Result<(), String> {
        match self.has_replied {
            true => Ok(()),
            false => self.check_answered(),
        }
    }

    fn check_answered(&self) -> Result<(), String> {
        if self.max_failed >= 1.0 || self.has_answered || self.failed == 0 {
            return Ok(());
        }
        Err(format!("no verdict yet, {} of {} failed: {}", self.failed, self.asked, self.last))
    }

    /// Looks at all that came since it was looked at, and begins anew where that was enough to judge by.
    ///
    /// # Errors
    /// Where too many failed.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.check_answered()?;
        let counted = self.asked.max(MIN_ASKED) as f64;
        if self.max_failed < 1.0 && self.failed as f64 > self.max_failed * counted {
            return Err(format!(
                "{} of {} verdicts failed, more than --judge_max_failed {}; the last: {}",
                self.failed, self.asked, self.max_failed, self.last
            ));
        }
        if self.asked >= MIN_ASKED {
            (self.asked, self.failed) = (0, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tally: &mut Tally, good: usize, bad: usize) -> Result<(), String> {
        for _ in 0..good {
            tally.note_answer();
            tally.note(&Ok(1.0));
        }
        for _ in 0..bad {
            tally.note(&Err("why".to_owned()));
        }
        tally.check()
    }

    #[test]
    fn shares_by_hand() {
        let mut tally = Tally::new(0.1);
        assert_eq!(told(&mut tally, 18, 2), Ok(()));
        let error = told(&mut tally, 17, 3).unwrap_err();
        assert!(error.starts_with("3 of 20 verdicts failed, more than"), "{error}");
        // Rows that come one by one add up.
        let mut tally = Tally::new(0.1);
        assert_eq!(told(&mut tally, 1, 1), Ok(()));
        assert!(told(&mut tally, 0, 1).is_err());
        // Until there is a verdict, one failure is enough; with 1 none ever is.
        assert!(told(&mut Tally::new(0.5), 0, 1).is_err());
        assert_eq!(told(&mut Tally::new(1.0), 0, 50), Ok(()));
        let mut none = Tally::new(0.0);
        assert_eq!(told(&mut none, 1_000, 0), Ok(()));
        assert!(told(&mut none, 1_000, 1).is_err());
    }
}
