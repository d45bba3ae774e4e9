/* dp_move: connections that change process. Part of dp_core.h. */
#ifndef DP_MOVE_H
#define DP_MOVE_H

#include "dp_account.h"
#include "dp_record.h"

/* --- dp_move: batches, and connections between requests --------------------------------------- */

void dp_move_offer(dp_engine *engine, dp_conn *conn); /* idle while draining: may be saved */
void dp_move_withdraw(dp_engine *engine);             /* all that was offered goes on here */
void dp_move_begin(dp_engine *engine);                /* a drain begins: what flows may be saved */
/* Something was done with a downstream connection during a drain: it may be one to save now. */
void dp_move_notice(dp_engine *engine, const dp_conn *down);

/* The listener of that name and protocol, or -1. */
int dp_move_listener(const dp_engine *engine, const dp_moved_bytes *name, int protocol);

/* --- dp_flow: what moves while bytes flow: tunnels, and responses whose head has gone out ----- */

/* Whether it may be saved as it stands. */
bool dp_flow_moves(const dp_conn *down);
/* Its record. Texts and bytes are the connection's own, or in ret_client; *ret_fds has as many as
 * dp_record_fds. */
void dp_flow_describe(const dp_engine *engine, const dp_conn *down, dp_record *ret_record,
                      char ret_client[DP_CLIENT_TEXT], int ret_fds[DP_MOVED_FDS_MAX]);
void dp_flow_freeze(dp_engine *engine, dp_conn *down);
/* Ends a downstream connection in whatever state, for that reason, with all that belongs to it. */
void dp_flow_cut(dp_engine *engine, dp_conn *down, enum dp_outcome outcome);
/* It is another process's now: closed here without a word. Also for one that was only held. */
void dp_flow_forget(dp_engine *engine, dp_conn *down);
/* Frozen or held: it goes on here from now on. False: it could not, and was cut. */
bool dp_flow_go_on(dp_engine *engine, dp_conn *down, enum dp_watch as);
/* Held still, with the descriptors taken over; or DP_DECLINED_, and they are the caller's. */
int dp_flow_take(dp_engine *engine, const dp_record *record, const int *fds, dp_conn **ret_down);
/* The held one begins to run, and is counted here. False: it could not, and was cut. */
bool dp_flow_start(dp_engine *engine, dp_conn *down);

#endif
