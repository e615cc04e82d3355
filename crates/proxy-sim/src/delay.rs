//! Times that things take, drawn from the seed.

use parking_lot::Mutex;

use crate::dice::Dice;

/// A time that is another one whenever it is taken. Some runs know short ones only, others have some of seconds.
#[derive(Debug)]
pub(crate) struct Delay {
    dice: Mutex<Dice>,
    most_millis: u64,
}

impl Delay {
    pub(crate) fn new(mut dice: Dice) -> Self {
        let most_millis = dice.pick(&[40, 400, 4_000]);
        Self { dice: Mutex::new(dice), most_millis }
    }

    /// Mostly none, else a part of the longest one, and now and then as long as that.
    pub(crate) async fn pass(&self) {
        let wait = {
            let mut dice = self.dice.lock();
            match dice.below(20) {
                0..10 => return,
                10..14 => None,
                14..19 => Some(dice.millis(1, self.most_millis / 10)),
                _ => Some(dice.millis(1, self.most_millis)),
            }
        };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => tokio::task::yield_now().await,
        }
    }
}
