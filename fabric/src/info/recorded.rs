//! Holds our hints against what a provider was recorded to offer: a hint outside of it makes fi_getinfo answer "no data"
//! on that network only, which no test on another machine would show.
//!
//! [`mismatch`] is the rule by which providers compare hints with what they have (fi_getinfo(3); ofi_check_info in
//! libfabric's prov/util/src/util_attr.c), for the fields that our hints set or could set. That it is the right rule is
//! checked against the providers at hand.

use libfabric_sys as sys;

use super::*;

/// The compared fields, of hints or of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    caps: u64,
    mode: u64,
    endpoint: sys::fi_ep_type,
    mr_mode: u64,
    threading: sys::fi_threading,
    control_progress: sys::fi_progress,
    av: sys::fi_av_type,
    transmit_order: u64,
    receive_order: u64,
    transmit_size: usize,
    receive_size: usize,
    inject_bytes: usize,
    message_bytes: usize,
    iov_limit: usize,
}

/// What cxi offers, recorded from libfabric 2.6 built with it.
fn cxi() -> Fields {
    Fields {
        caps: sys::FI_MSG
            | sys::FI_RMA
            | sys::FI_TAGGED
            | sys::FI_ATOMIC
            | sys::FI_READ
            | sys::FI_WRITE
            | sys::FI_SEND
            | sys::FI_RECV
            | sys::FI_REMOTE_READ
            | sys::FI_REMOTE_WRITE
            | sys::FI_LOCAL_COMM
            | sys::FI_REMOTE_COMM,
        mode: 0,
        endpoint: sys::FI_EP_RDM,
        mr_mode: sys::FI_MR_ENDPOINT | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY,
        threading: sys::FI_THREAD_SAFE,
        control_progress: sys::FI_PROGRESS_MANUAL,
        av: sys::FI_AV_UNSPEC,
        // No order of sends after writes, and none of reads after writes.
        transmit_order: sys::FI_ORDER_SAS | sys::FI_ORDER_WAW,
        receive_order: sys::FI_ORDER_SAS | sys::FI_ORDER_WAW,
        transmit_size: 1024,
        receive_size: 1024,
        inject_bytes: 192,
        message_bytes: (1 << 32) - 1,
        iov_limit: 1,
    }
}

/// The compared fields of a structure.
fn fields(info: &sys::fi_info) -> Fields {
    // SAFETY: the structure came from the library, which allocates all attributes.
    unsafe {
        let (domain, transmit, receive) = (&*info.domain_attr, &*info.tx_attr, &*info.rx_attr);
        Fields {
            caps: info.caps,
            mode: info.mode,
            endpoint: (*info.ep_attr).type_,
            mr_mode: u64::from(domain.mr_mode.cast_unsigned()),
            threading: domain.threading,
            control_progress: domain.control_progress,
            av: domain.av_type,
            transmit_order: transmit.msg_order,
            receive_order: receive.msg_order,
            transmit_size: transmit.size,
            receive_size: receive.size,
            inject_bytes: transmit.inject_size,
            message_bytes: (*info.ep_attr).max_msg_size,
            iov_limit: transmit.iov_limit,
        }
    }
}

/// Ranks threading models by how much of the locking the user does.
fn threading_rank(threading: sys::fi_threading) -> u32 {
    match threading {
        sys::FI_THREAD_SAFE => 1,
        sys::FI_THREAD_FID => 2,
        sys::FI_THREAD_ENDPOINT => 3,
        sys::FI_THREAD_COMPLETION => 4,
        sys::FI_THREAD_DOMAIN => 5,
        _ => 6,
    }
}

/// Ranks progress by how much of it the user does.
fn progress_rank(progress: sys::fi_progress) -> u32 {
    match progress {
        sys::FI_PROGRESS_AUTO => 1,
        sys::FI_PROGRESS_MANUAL => 2,
        _ => 3,
    }
}

/// The first field by which a provider with `offer` refuses `hints`.
fn mismatch(hints: &Fields, offer: &Fields) -> Option<&'static str> {
    let differs = |hint, offer, any| hint != any && offer != any && hint != offer;
    let checks = [
        ("endpoint type", differs(hints.endpoint, offer.endpoint, sys::FI_EP_UNSPEC)),
        ("capabilities", hints.caps & !offer.caps != 0),
        // What the provider needs, the user must have said that it can do.
        ("mode", offer.mode & !hints.mode != 0),
        ("mr_mode", offer.mr_mode & !hints.mr_mode != 0),
        ("threading", threading_rank(hints.threading) < threading_rank(offer.threading)),
        ("progress", progress_rank(hints.control_progress) < progress_rank(offer.control_progress)),
        ("address vector", differs(hints.av, offer.av, sys::FI_AV_UNSPEC)),
        ("order of sends", hints.transmit_order & !offer.transmit_order != 0),
        ("order of receives", hints.receive_order & !offer.receive_order != 0),
        ("transmit size", hints.transmit_size > offer.transmit_size),
        ("receive size", hints.receive_size > offer.receive_size),
        ("inject size", hints.inject_bytes > offer.inject_bytes),
        ("message size", hints.message_bytes > offer.message_bytes),
        ("iov limit", hints.iov_limit > offer.iov_limit),
    ];
    checks.iter().find(|(_, differs)| *differs).map(|(name, _)| *name)
}

fn library() -> Option<&'static Library> {
    sys::load().inspect_err(|error| println!("skipped: {error}")).ok()
}

/// A daemon's hints.
fn hints(library: &'static Library, name: &str, transmit: usize) -> Hints {
    let query = Query { transmit, receive: 512, ..Query::plain(name, false) };
    Hints::new(library, &query, true).expect("hints")
}

#[test]
fn cxi_takes_the_hints_and_the_frames() {
    let Some(library) = library() else { return };
    let hints = hints(library, "cxi", 320);
    // SAFETY: `hints` owns the structure.
    let asked = fields(unsafe { hints.0.as_ref() });
    assert_eq!(mismatch(&asked, &cxi()), None, "{asked:?}");
    assert_eq!(asked.mr_mode & sys::FI_MR_VIRT_ADDR, 0, "cxi reads by offset");
    // SAFETY: as above; the hints name the provider.
    assert_eq!(unsafe { text_of((*hints.0.as_ref().fabric_attr).prov_name) }, "cxi");
    let config = crate::PortConfig::new(crate::Net::Cxi { nic: None, vni: None });
    assert!(config.frame_bytes_max <= 16_384, "beyond it a frame becomes a rendezvous");
    assert!(config.sends + config.reads <= cxi().transmit_size && config.receives <= cxi().receive_size);
    const { assert!(API_VERSION == 0x1000f) };
}

/// Hints that one field makes wrong for cxi.
#[test]
fn cxi_refuses_what_it_does_not_have() {
    let Some(library) = library() else { return };
    let hints = hints(library, "cxi", 320);
    // SAFETY: `hints` owns the structure.
    let right = fields(unsafe { hints.0.as_ref() });
    for (name, wrong) in [
        ("mr_mode", Fields { mr_mode: right.mr_mode & !sys::FI_MR_ENDPOINT, ..right.clone() }),
        ("mr_mode", Fields { mr_mode: right.mr_mode & !sys::FI_MR_PROV_KEY, ..right.clone() }),
        ("progress", Fields { control_progress: sys::FI_PROGRESS_AUTO, ..right.clone() }),
        ("order of sends", Fields { transmit_order: sys::FI_ORDER_SAW, ..right.clone() }),
        ("inject size", Fields { inject_bytes: 193, ..right.clone() }),
        ("transmit size", Fields { transmit_size: 1025, ..right.clone() }),
        ("message size", Fields { message_bytes: 1 << 32, ..right.clone() }),
        ("iov limit", Fields { iov_limit: 2, ..right.clone() }),
    ] {
        assert_eq!(mismatch(&wrong, &cxi()), Some(name));
    }
}

#[test]
fn the_rule_is_the_librarys() {
    let Some(library) = library() else { return };
    for name in ["net", "sockets"] {
        let all = Info::ask(library, &Query::plain("", false), None).expect("ask").expect("some provider");
        let mut offers: Vec<Fields> = Vec::new();
        let mut next = Some(all.head);
        while let Some(entry) = next {
            // SAFETY: `entry` is an entry of the list that `all` owns; `next` is null at its end.
            let info = unsafe { entry.as_ref() };
            // SAFETY: as above; an answer names its provider.
            if unsafe { text_of((*info.fabric_attr).prov_name) } == name && fields(info).endpoint == sys::FI_EP_RDM {
                offers.push(fields(info));
            }
            next = NonNull::new(info.next);
        }
        // An answer without hints has default sizes, which some providers let hints exceed: far beyond is what all refuse.
        let most = |of: fn(&Fields) -> usize| offers.iter().map(of).max();
        let (Some(inject), Some(sends), Some(receives), Some(iov)) = (
            most(|offer| offer.inject_bytes),
            most(|offer| offer.transmit_size),
            most(|offer| offer.receive_size),
            most(|offer| offer.iov_limit),
        ) else {
            println!("skipped: no provider {name} with RDM endpoints here");
            continue;
        };
        type Change<'a> = &'a dyn Fn(&mut sys::fi_info);
        // SAFETY, for all of them: the hints are the library's, with all attributes, and nobody else's.
        let changes: [(&str, Change<'_>); 8] = [
            ("nothing", &|_| {}),
            ("no mode", &|info| info.mode = 0),
            ("a capability", &|info| info.caps |= sys::FI_VARIABLE_MSG),
            // SAFETY: see above.
            ("inject", &|info| unsafe { (*info.tx_attr).inject_size = inject + (1 << 20) }),
            // SAFETY: see above.
            ("inject, just so", &|info| unsafe { (*info.tx_attr).inject_size = inject }),
            // SAFETY: see above.
            ("sends", &|info| unsafe { (*info.tx_attr).size = sends + (1 << 20) }),
            // SAFETY: see above.
            ("receives", &|info| unsafe { (*info.rx_attr).size = receives + (1 << 20) }),
            // SAFETY: see above.
            ("iov", &|info| unsafe { (*info.tx_attr).iov_limit = iov + (1 << 20) }),
        ];
        for (what, change) in changes {
            let mut hints = hints(library, name, 64);
            // SAFETY: `hints` owns the structure.
            let info = unsafe { hints.0.as_mut() };
            // SAFETY: as above. Sizes are a wish of ours that some offers do not have room for.
            unsafe { ((*info.tx_attr).size, (*info.rx_attr).size) = (0, 0) };
            change(info);
            let refused: Vec<_> = offers.iter().map(|offer| mismatch(&fields(info), offer)).collect();
            let answer = Info::ask(library, &Query::plain(name, false), Some(&hints)).expect("ask");
            assert_eq!(refused.contains(&None), answer.is_some(), "{name}, {what}: {refused:?}");
        }
    }
}
