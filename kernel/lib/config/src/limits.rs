//! What a VM may use at most: limits in its definition, which can change while it runs.

use alloc::format;

use crate::{Invalid, Size};

/// The most that a CPU limit can say: as many CPUs as a VM can have vCPUs.
pub const CPU_PERCENT_MAX: u64 = 6400;
/// The most requests a second that a limit can say.
pub const IOPS_MAX: u64 = 1_000_000_000;
/// The least rate of disks and NICs: one large request a second.
pub const RATE_MIN: Size = Size::from_bytes(64 << 10);

/// What a VM may use at most; nothing says: as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Time on CPUs, in percent of one: 200 are two whole ones. 1 to [`CPU_PERCENT_MAX`].
    pub cpu_percent: Option<u16>,
    /// Requests a second to all of its disks, 1 to [`IOPS_MAX`].
    pub iops: Option<u32>,
    /// Bytes a second to and from all of its disks, [`RATE_MIN`] at least.
    pub disk_rate: Option<Size>,
    /// Bytes a second that its NICs send, [`RATE_MIN`] at least.
    pub net_rate: Option<Size>,
    /// Bytes a second that its NICs receive, [`RATE_MIN`] at least; what comes beyond is lost, as on a slow line.
    pub receive_rate: Option<Size>,
}

impl Limits {
    /// Limits that somebody asks for.
    ///
    /// # Errors
    /// Where one is out of its range.
    pub fn checked(
        cpu_percent: Option<u64>,
        iops: Option<u64>,
        disk_rate: Option<Size>,
        net_rate: Option<Size>,
        receive_rate: Option<Size>,
    ) -> Result<Self, Invalid> {
        Ok(Self {
            cpu_percent: cpu_percent.map(Self::cpu_percent).transpose()?,
            iops: iops.map(Self::iops).transpose()?,
            disk_rate: disk_rate.map(Self::rate).transpose()?,
            net_rate: net_rate.map(Self::rate).transpose()?,
            receive_rate: receive_rate.map(Self::rate).transpose()?,
        })
    }

    /// Checks a CPU limit.
    ///
    /// # Errors
    /// Where it is out of range.
    pub fn cpu_percent(percent: u64) -> Result<u16, Invalid> {
        u16::try_from(percent).ok().filter(|_| (1..=CPU_PERCENT_MAX).contains(&percent)).ok_or_else(|| {
            let remedy = format!("give 1 to {CPU_PERCENT_MAX}; 100 is one whole CPU");
            Invalid::new(format!("a VM cannot be limited to {percent} percent of a CPU"), remedy)
        })
    }

    /// Checks a limit of requests a second.
    ///
    /// # Errors
    /// Where it is out of range.
    pub fn iops(number: u64) -> Result<u32, Invalid> {
        u32::try_from(number).ok().filter(|_| (1..=IOPS_MAX).contains(&number)).ok_or_else(|| {
            let message = format!("a VM cannot be limited to {number} requests a second");
            Invalid::new(message, format!("give 1 to {IOPS_MAX}"))
        })
    }

    /// Checks a rate in bytes a second.
    ///
    /// # Errors
    /// Where it is less than [`RATE_MIN`].
    pub fn rate(size: Size) -> Result<Size, Invalid> {
        if size >= RATE_MIN {
            return Ok(size);
        }
        let remedy = format!("give {RATE_MIN} a second or more, such as 10M");
        Err(Invalid::new(format!("a VM cannot be limited to {size} a second"), remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused() {
        assert_eq!(Limits::cpu_percent(6400), Ok(6400));
        assert_eq!(Limits::iops(1), Ok(1));
        assert_eq!(Limits::rate(RATE_MIN), Ok(RATE_MIN));
        assert!(Limits::cpu_percent(0).is_err() && Limits::cpu_percent(6401).is_err());
        assert!(Limits::iops(0).is_err() && Limits::iops(u64::MAX).is_err());
        assert!(Limits::rate(Size::from_bytes(65_535)).is_err());
    }

    #[test]
    fn limits_of_others_are_checked_one_by_one() {
        let most = Some(Size::from_bytes(u64::MAX));
        let limits = Limits { cpu_percent: Some(1), iops: Some(1_000_000_000), disk_rate: most, ..Limits::default() };
        assert_eq!(Limits::checked(Some(1), Some(IOPS_MAX), most, None, None), Ok(limits));
        assert_eq!(Limits::checked(None, None, None, None, None), Ok(Limits::default()));
        assert!(Limits::checked(Some(1 << 16 | 50), None, None, None, None).is_err(), "it does not wrap around");
        assert!(Limits::checked(None, Some(1 << 32 | 50), None, None, None).is_err());
        assert!(Limits::checked(None, None, Some(Size::default()), None, None).is_err());
        assert!(Limits::checked(None, None, None, Some(Size::default()), None).is_err());
        assert!(Limits::checked(None, None, None, None, Some(Size::default())).is_err());
    }
}
