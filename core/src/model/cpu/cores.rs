//! How many threads help: efficiency cores and second threads of a core slow a memory-bound matmul down.

/// Physical performance cores that this process may use, at least one.
pub(in crate::model) fn performance_cores() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    platform_cores().map_or(available, |cores| cores.clamp(1, available))
}

/// Distinct cores among those with the highest capacity, from sysfs.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn platform_cores() -> Option<usize> {
    let read = |cpu: usize, file: &str| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/{file}")).ok()?;
        Some(text.trim().to_owned())
    };
    let mut cores: Vec<(String, u64)> = Vec::new();
    let mut cpu = 0;
    while let Some(siblings) = read(cpu, "topology/thread_siblings_list") {
        // ARM kernels state a capacity; elsewhere the largest frequency tells the kinds of cores apart.
        let capacity = read(cpu, "cpu_capacity").or_else(|| read(cpu, "cpufreq/cpuinfo_max_freq"));
        let capacity = capacity.and_then(|text| text.parse().ok()).unwrap_or(0);
        if !cores.iter().any(|(known, _)| *known == siblings) {
            cores.push((siblings, capacity));
        }
        cpu += 1;
    }
    let largest = cores.iter().map(|(_, capacity)| *capacity).max()?;
    // Phones have one prime core and several big ones: all but the little ones count.
    Some(cores.iter().filter(|(_, capacity)| *capacity * 10 >= largest * 6).count())
}

#[cfg(target_vendor = "apple")]
fn platform_cores() -> Option<usize> {
    let read = |name: &std::ffi::CStr| {
        let mut value: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>();
        // SAFETY: the name ends with zero; `value` has room for `size` bytes.
        let status =
            unsafe { libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &mut size, std::ptr::null_mut(), 0) };
        (status == 0 && value > 0).then_some(value as usize)
    };
    read(c"hw.perflevel0.physicalcpu").or_else(|| read(c"hw.physicalcpu"))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn platform_cores() -> Option<usize> {
    None
}
