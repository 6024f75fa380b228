//! Where a cursor stands in the ring.

/// The first place below `len` of which `beyond` is true, as it is of all after it; `len` where there is none. Most readers stand among
/// the newest batches, so it is looked for from there in growing steps: the batches of a long ring are spread over memory, and each that
/// is looked at costs.
pub fn first(len: usize, beyond: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut upto, mut step) = (0, len, 1);
    while let Some(at) = upto.checked_sub(step) {
        if !beyond(at) {
            from = at + 1;
            break;
        }
        (upto, step) = (at, step * 2);
    }
    while from < upto {
        let middle = from + (upto - from) / 2;
        if beyond(middle) {
            upto = middle;
        } else {
            from = middle + 1;
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    #[test]
    fn it_is_found_wherever_it_is() {
        for len in 0..70 {
            for first in 0..=len {
                assert_eq!(super::first(len, |at| at >= first), first, "{len}");
            }
        }
    }

    #[test]
    fn near_the_end_little_is_looked_at() {
        let looked = Cell::new(0);
        let first = super::first(1_000_000, |at| {
            looked.set(looked.get() + 1);
            at >= 999_999
        });
        assert_eq!((first, looked.get()), (999_999, 3));
    }
}
