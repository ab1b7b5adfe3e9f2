use super::*;

#[test]
fn a_panic_is_an_io_error_and_counted() {
    let counters = Counters::default();
    let fine = guarded(&counters, "test", || Ok(7));
    assert_eq!(fine, Ok(7));
    let failed = guarded::<()>(&counters, "test", || Err(Errno::EXIST));
    assert_eq!(failed, Err(Code(libc::EEXIST)));
    let panicked = guarded::<()>(&counters, "test", || panic!("on purpose"));
    assert_eq!(panicked, Err(Code::EIO));
    assert_eq!(
        (counters.requests(), counters.errors(), counters.panics()),
        (3, 2, 1)
    );
}

#[test]
fn errors_the_kernel_can_take() {
    let table = [
        (libc::ENOENT, libc::ENOENT),
        (libc::ENOSYS, libc::EOPNOTSUPP),
        (512, libc::EIO),
        (4095, libc::EIO),
    ];
    for (engine, kernel) in table {
        let sent = Code::from(Errno::from_raw_os_error(engine));
        assert_eq!(sent.get(), kernel, "{engine}");
    }
}

#[test]
fn rename_flags_known_and_unknown() {
    let known = rename_flags(7).expect("known flags");
    assert!(known.no_replace && known.exchange && known.whiteout);
    assert_eq!(rename_flags(0), Some(RenameFlags::default()));
    assert_eq!(rename_flags(8), None);
}

#[test]
fn values_fit_or_are_refused() {
    let answer = |room, len| match xattr(room, vec![0; len]) {
        Ok(XattrAnswer::Size(size)) => Ok((true, size as usize)),
        Ok(XattrAnswer::Data(data)) => Ok((false, data.len())),
        Err(code) => Err(code.get()),
    };
    assert_eq!(answer(0, 5), Ok((true, 5)));
    assert_eq!(answer(5, 5), Ok((false, 5)));
    assert_eq!(answer(4, 5), Err(libc::ERANGE));
    assert_eq!(answer(0, XATTR_MAX + 1), Err(libc::E2BIG));
}
