// SPDX-License-Identifier: Apache-2.0

package main

const systemCall = 280 // __NR_bpf
