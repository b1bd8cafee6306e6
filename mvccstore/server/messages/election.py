"""The messages of package `v3electionpb`.

Made by `make messages` from proto/mvccstore_election.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

LeaderKey = message("v3electionpb.LeaderKey")
CampaignRequest = message("v3electionpb.CampaignRequest")
CampaignResponse = message("v3electionpb.CampaignResponse")
ProclaimRequest = message("v3electionpb.ProclaimRequest")
ProclaimResponse = message("v3electionpb.ProclaimResponse")
LeaderRequest = message("v3electionpb.LeaderRequest")
LeaderResponse = message("v3electionpb.LeaderResponse")
ResignRequest = message("v3electionpb.ResignRequest")
ResignResponse = message("v3electionpb.ResignResponse")
